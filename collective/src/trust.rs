//! From the job's secret to certificates, and who may connect.

pub(crate) mod certificates;
pub(crate) mod hello;
pub(crate) mod secret;
