//! What a fuzzer may reach of the wire; there is no such module in any other build.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::endpoint::Message;
use crate::group::Standing;
use crate::trust::hello::{Answer, Hello};
use crate::wire::{self, Header, MAX_PAYLOAD_BYTES, Preamble};

/// Reads bytes as each kind of thing that comes from a peer; the first byte says as which. What can
/// be read is within its limits, and is written as it was.
pub fn wire(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 7 {
        0 => header(bytes),
        1 => {
            if let Some(preamble) = bytes.first_chunk().and_then(Preamble::from_wire) {
                assert!(bytes.starts_with(&preamble.to_wire()));
            }
        }
        2 => {
            if let Some((contract, location)) = wire::read_contract(bytes) {
                assert!(location.chars().count() <= bytes.len());
                let again = wire::read_contract(&contract.to_wire()).map(|(contract, _)| contract);
                assert_eq!(again, Some(contract));
            }
        }
        3 => control::<Hello>(bytes),
        4 => control::<Answer>(bytes),
        5 => control::<Message>(bytes),
        _ => control::<(u64, Vec<Standing>)>(bytes),
    }
}

fn header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk() else { return };
    if let Ok(header) = Header::from_wire(bytes) {
        assert!(header.payload_bytes <= MAX_PAYLOAD_BYTES);
        assert_eq!(Header::from_wire(&header.to_wire()), Ok(header));
    }
}

fn control<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(message) = wire::decode_control::<T>(bytes)
        && let Ok(frame) = wire::encode_control(&message)
    {
        assert_eq!(&frame[4..], bytes);
    }
}
