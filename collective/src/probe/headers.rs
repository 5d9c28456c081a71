//! What is done to headers for each segment and for each call, without the bytes between them.

use std::hint::black_box;

use crate::contract::{CONTRACT_BYTES, Collective, Contract, Role, roll};
use crate::reduce::{ElementType, ReduceOp};
use crate::wire::{Header, MessageKind, read_contract};

/// Writes and reads the headers of so many segments; returns how many were read as written.
pub fn segment_headers(count: u64) -> u64 {
    let is_same = |segment: &u64| {
        let header = header(*segment, 0);
        Header::from_wire(&black_box(header.to_wire())) == Ok(header)
    };
    (0..count).filter(is_same).count() as u64
}

/// As [`segment_headers`], for the first message of a call: the hash is rolled on, and the contract
/// goes with the header.
pub fn call_headers(count: u64) -> u64 {
    let contract = Contract {
        group: 1,
        sequence: 0,
        collective: Collective::AllReduce,
        role: Role::Data,
        op: Some(ReduceOp::Sum),
        element: ElementType::F32,
        count: 1 << 20,
        spread: 0,
        label: None,
        plan: 7,
    };
    // Kept from call to call by the runtime as well.
    let digest = black_box(contract.digest());
    let mut hash = 0;
    let mut is_same = |sequence: &u64| {
        let contract = Contract { sequence: *sequence, ..contract };
        hash = roll(hash, digest, contract.sequence);
        let header = Header { hash, ..header(*sequence, CONTRACT_BYTES as u16) };
        let (bytes, more) = (black_box(header.to_wire()), black_box(contract.to_wire()));
        let read = read_contract(&more).map(|(contract, _)| contract);
        Header::from_wire(&bytes) == Ok(header) && read == Some(contract)
    };
    (0..count).filter(&mut is_same).count() as u64
}

fn header(segment: u64, contract_bytes: u16) -> Header {
    Header {
        kind: MessageKind::Segment,
        is_unprompted: segment == 0,
        contract_bytes,
        payload_bytes: 64 << 10,
        epoch: 3,
        sequence: 5,
        hash: 9,
        segment,
        step: 1,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_are_read_as_they_were_written() {
        assert_eq!(super::segment_headers(10), 10);
        assert_eq!(super::call_headers(10), 10);
    }
}
