//! What goes over a link: headers by hand, control messages by bincode with a byte limit.

#[cfg(test)]
mod golden;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::contract::{CONTRACT_BYTES, Contract, MAX_LOCATION_BYTES};
use crate::report;

/// The first bytes of a stream: which flow it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub(crate) epoch: u64,
    pub(crate) from: u32,
    /// The communicator, or the pair.
    pub(crate) group: u64,
    pub(crate) tree: u16,
    pub(crate) lane: u16,
}

/// What comes before every segment, and all there is of a goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: MessageKind,
    /// Its sender waited for no other rank before it sent this: it comes when the sender does.
    pub(crate) is_unprompted: bool,
    /// Bytes of contract and source location between this header and the payload.
    pub(crate) contract_bytes: u16,
    pub(crate) payload_bytes: u32,
    pub(crate) epoch: u64,
    /// The call; in a goodbye, the number of calls made.
    pub(crate) sequence: u64,
    /// The rolling hash after that call; in a goodbye, after all calls.
    pub(crate) hash: u64,
    pub(crate) segment: u64,
    pub(crate) step: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageKind {
    Segment = 1,
    Goodbye = 2,
}

impl Preamble {
    pub(crate) fn to_wire(self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..4].copy_from_slice(b"AFst");
        bytes[4..12].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.from.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.group.to_le_bytes());
        bytes[24..26].copy_from_slice(&self.tree.to_le_bytes());
        bytes[26..28].copy_from_slice(&self.lane.to_le_bytes());
        bytes
    }

    pub(crate) fn from_wire(bytes: &[u8; PREAMBLE_BYTES]) -> Option<Self> {
        let mut fields = Fields(&bytes[4..]);
        bytes.starts_with(b"AFst").then(|| Self {
            epoch: fields.u64(),
            from: fields.u32(),
            group: fields.u64(),
            tree: fields.u16(),
            lane: fields.u16(),
        })
    }
}

impl Header {
    pub(crate) fn to_wire(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.kind as u8;
        bytes[1] = u8::from(self.is_unprompted);
        bytes[2..4].copy_from_slice(&self.contract_bytes.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.hash.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.segment.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.step.to_le_bytes());
        bytes
    }

    /// Reads a header; an error says what is wrong with it. Lengths are within their limits.
    pub(crate) fn from_wire(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let mut fields = Fields(&bytes[2..]);
        let header = Self {
            kind: match bytes[0] {
                1 => MessageKind::Segment,
                2 => MessageKind::Goodbye,
                other => return Err(format!("a message of unknown kind {other}")),
            },
            is_unprompted: bytes[1] & 1 != 0,
            contract_bytes: fields.u16(),
            payload_bytes: fields.u32(),
            epoch: fields.u64(),
            sequence: fields.u64(),
            hash: fields.u64(),
            segment: fields.u64(),
            step: fields.u32(),
        };
        if header.payload_bytes > MAX_PAYLOAD_BYTES {
            return Err(format!("a segment of {} bytes", header.payload_bytes));
        }
        let contract = usize::from(header.contract_bytes);
        if contract != 0
            && !(CONTRACT_BYTES..=CONTRACT_BYTES + MAX_LOCATION_BYTES).contains(&contract)
        {
            return Err(format!("a contract of {contract} bytes"));
        }
        Ok(header)
    }
}

/// A contract and its source location, as they follow a header.
pub(crate) fn read_contract(bytes: &[u8]) -> Option<(Contract, String)> {
    let (contract, location) = bytes.split_first_chunk::<CONTRACT_BYTES>()?;
    let location = report::printable(&String::from_utf8_lossy(location));
    Some((Contract::from_wire(contract)?, location))
}

/// A control message as a frame: its length, then bincode.
pub(crate) fn encode_control<T: Serialize>(message: &T) -> Result<Vec<u8>, String> {
    let mut frame = vec![0; 4];
    let config = bincode::config::legacy();
    let length = bincode::serde::encode_into_std_write(message, &mut frame, config)
        .map_err(|error| format!("a control message cannot be written: {error}"))?;
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// Reads a control message from all of `bytes`, which the caller has kept below its limit.
pub(crate) fn decode_control<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let config = bincode::config::legacy().with_limit::<MAX_CONTROL_BYTES>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((message, used)) if used == bytes.len() => Ok(message),
        Ok(_) => Err("a control message with bytes left over".into()),
        Err(error) => Err(format!("a control message that cannot be read: {error}")),
    }
}

/// Reads what a control message begins with; the rest may be of another version.
pub(crate) fn decode_beginning<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let config = bincode::config::legacy().with_limit::<MAX_HELLO_BYTES>();
    bincode::serde::decode_from_slice(bytes, config)
        .map(|(beginning, _)| beginning)
        .map_err(|error| format!("a control message that cannot be read: {error}"))
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

pub(crate) const PREAMBLE_BYTES: usize = 28;
pub(crate) const HEADER_BYTES: usize = 44;
/// Segments are 63 KiB; four times that leaves room to tune without a new protocol version.
pub(crate) const MAX_PAYLOAD_BYTES: u32 = 256 * 1024;
/// A world table of 65,536 ranks at 256 bytes each.
pub(crate) const MAX_CONTROL_BYTES: usize = 16 * 1024 * 1024;
/// Before a peer's hello is accepted it may send no more than this.
pub(crate) const MAX_HELLO_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Collective, Role};
    use crate::reduce::{ElementType, ReduceOp};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_survives_the_wire(
            contract in prop_oneof![Just(0u16), 56u16..176], payload_bytes in 0..MAX_PAYLOAD_BYTES,
            epoch: u64, sequence: u64, hash: u64, segment: u64, step: u32, is_unprompted: bool,
        ) {
            let header = Header {
                kind: MessageKind::Segment, is_unprompted, contract_bytes: contract, payload_bytes, epoch,
                sequence, hash, segment, step,
            };
            prop_assert_eq!(Header::from_wire(&header.to_wire()), Ok(header));
        }

        #[test]
        fn no_bytes_upset_the_readers(header: [u8; HEADER_BYTES], preamble: [u8; PREAMBLE_BYTES],
            contract in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(header) = Header::from_wire(&header) {
                prop_assert!(header.payload_bytes <= MAX_PAYLOAD_BYTES);
            }
            let _ = Preamble::from_wire(&preamble);
            let _ = read_contract(&contract);
            let _ = decode_control::<Vec<String>>(&contract);
        }

        #[test]
        fn a_contract_survives_the_wire_and_every_field_changes_the_hash(
            group: u64, sequence: u64, root: u32, count: u64, spread: u64, label: Option<u64>,
            plan: u64, splits: bool, before: u64,
        ) {
            let (role, other) = match splits {
                true => (Role::Split, Role::Device),
                false => (Role::Data, Role::Split),
            };
            let contract = Contract {
                group, sequence, collective: Collective::Broadcast { root }, role, op: None,
                element: ElementType::F64, count, spread, label, plan,
            };
            prop_assert_eq!(Contract::from_wire(&contract.to_wire()), Some(contract));
            let others = [
                Contract { group: group ^ 1, ..contract },
                Contract { role: other, ..contract },
                Contract { spread: spread ^ 1, ..contract },
                Contract { sequence: sequence ^ 1, ..contract },
                Contract { collective: Collective::Barrier, ..contract },
                Contract { collective: Collective::Broadcast { root: root ^ 1 }, ..contract },
                Contract { op: Some(ReduceOp::Sum), ..contract },
                Contract { element: ElementType::F32, ..contract },
                Contract { count: count ^ 1, ..contract },
                Contract { label: Some(label.map_or(0, |l| l ^ 1)), ..contract },
                Contract { plan: plan ^ 1, ..contract },
            ];
            for other in others {
                prop_assert_ne!(roll(&other, before), roll(&contract, before));
            }
            prop_assert_ne!(roll(&contract, before ^ 1), roll(&contract, before));
        }
    }

    fn roll(contract: &Contract, before: u64) -> u64 {
        crate::contract::roll(before, contract.digest(), contract.sequence)
    }

    #[test]
    fn a_preamble_survives_the_wire() {
        let preamble = Preamble { epoch: 7, from: 3, group: 1 << 60, tree: 1, lane: 2 };
        assert_eq!(Preamble::from_wire(&preamble.to_wire()), Some(preamble));
    }

    #[test]
    fn a_forged_length_asks_for_no_memory() {
        // A string that claims 2^40 bytes.
        let mut bytes = vec![0; 32];
        bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(decode_control::<String>(&bytes).is_err());
    }
}
