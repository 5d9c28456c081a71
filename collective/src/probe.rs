//! What the hardware and a bare link allow, for benchmarks to compare collectives with: the
//! runtime's own links, kernels and cipher, each measured alone.
//!
//! [`Link`] sends bytes from rank to rank with the runtime's QUIC, its tuning and its mutual TLS,
//! and nothing above it: no plan, no reduction, no contract. [`combine`] is one reduction of two
//! buffers. [`encryption`] is the cipher without a network. [`SharedSum`] is what memory allows that
//! all processes of a host see. `DeviceBuffers` makes calls on a GPU, and the same ones by NCCL alone.

mod cipher;
mod headers;
mod link;
mod shared_sum;
mod wire;

#[cfg(feature = "nccl")]
#[doc(hidden)]
pub use crate::nccl::buffers::{
    DeviceBuffer, DeviceBuffers, DeviceCall, DeviceCollective, DeviceMark, RawDeviceCalls,
};
pub use cipher::{Cipher, EncryptionRates, encryption};
#[doc(hidden)]
pub use headers::{call_headers, segment_headers};
pub use link::{Link, LinkFigures, Route};
pub use shared_sum::{SharedBuffers, SharedSum};

use crate::error::{ErrorKind, Result};
use crate::reduce::{Kernel, ReduceOp, Reducible};

/// Combines two buffers of little-endian elements of type `T` as one step of a collective between
/// two ranks does: `local` becomes local `op` incoming. No alignment is needed.
///
/// # Errors
/// [`ErrorKind::Argument`] if the lengths differ or are no multiple of the element's size.
pub fn combine<T: Reducible>(local: &mut [u8], incoming: &[u8], op: ReduceOp) -> Result<()> {
    let element = T::TYPE;
    if local.len() != incoming.len() || !local.len().is_multiple_of(element.size()) {
        let problem =
            format!("combine: {} bytes with {} bytes of {element}", local.len(), incoming.len());
        return Err(ErrorKind::Argument { problem }.into());
    }
    let kernel = Kernel { element, op, ranks: 2, incoming_raw: true, local_raw: true, last: true };
    kernel.combine(local, incoming);
    Ok(())
}
