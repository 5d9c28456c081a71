//! stub
pub(crate) struct QuicLinks;
impl QuicLinks {
    pub(crate) async fn open_flow(&self, _: u32) -> Result<super::FlowSender, String> {
        Err("".into())
    }
    pub(crate) fn want(&self, _: u32) {}
    pub(crate) async fn next_incoming(&self) -> Option<super::Incoming> {
        None
    }
    pub(crate) async fn close(&self) {}
}
