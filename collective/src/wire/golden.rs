//! The wire as bytes. A test that fails here means that ranks of this version and of the last one
//! would not understand each other: take the new bytes from its message, and give the protocol a
//! new name (`ALPN` in `trust/certificates.rs`).

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::contract::{Collective, Role};
use crate::control::endpoint::Message;
use crate::group::Trail;
use crate::reduce::{ElementType, ReduceOp};
use crate::trust::hello::{Again, Answer, Hello, Purpose};
use crate::verdict::{Fault, Verdict};

#[test]
fn a_preamble() {
    let preamble = Preamble { epoch: 0x0102, from: 3, group: 1 << 60, tree: 4, lane: 5 };
    let golden = "4146737402010000000000000300000000000000000000100400 0500";
    assert_eq!(hex(&preamble.to_wire()), plain(golden));
    assert_eq!(Preamble::from_wire(bytes(golden).first_chunk().unwrap()), Some(preamble));
}

#[test]
fn headers() {
    let header = Header {
        kind: MessageKind::Segment,
        is_unprompted: true,
        contract_bytes: 56,
        payload_bytes: 1200,
        epoch: 0x0102,
        sequence: 7,
        hash: 0x1122_3344_5566_7788,
        segment: 9,
        step: 10,
    };
    let golden = "01013800b0040000 0201000000000000 0700000000000000 8877665544332211 \
                  0900000000000000 0a000000";
    assert_eq!(hex(&header.to_wire()), plain(golden));
    assert_eq!(Header::from_wire(bytes(golden).first_chunk().unwrap()), Ok(header));
    let goodbye = Header {
        kind: MessageKind::Goodbye,
        is_unprompted: false,
        contract_bytes: 0,
        payload_bytes: 0,
        segment: 0,
        step: 0,
        ..header
    };
    let golden = "0200000000000000 0201000000000000 0700000000000000 8877665544332211 \
                  0000000000000000 00000000";
    assert_eq!(hex(&goodbye.to_wire()), plain(golden));
}

#[test]
fn a_contract() {
    let contract = Contract {
        group: 1,
        sequence: 7,
        collective: Collective::Reduce { root: 2 },
        role: Role::Data,
        op: Some(ReduceOp::Avg),
        element: ElementType::F32,
        count: 1000,
        spread: 0,
        label: Some(5),
        plan: 0x1122_3344_5566_7788,
    };
    let golden = GOLDEN_CONTRACT;
    assert_eq!(hex(&contract.to_wire()), plain(golden));
    let read = read_contract(&[&bytes(golden)[..], b"src/train.rs:88"].concat());
    assert_eq!(read, Some((contract, "src/train.rs:88".into())));
    assert_eq!(crate::contract::roll(3, contract.digest(), contract.sequence), GOLDEN_HASH);
}

#[test]
fn a_hello_and_its_answers() {
    let hello = Hello {
        version: "0.1.0".into(),
        rank: 3,
        incarnation: 0x0102,
        host: "node-3".into(),
        pid: 41,
        habitat: 11,
        purpose: Purpose::Join {
            settings: vec![("ALLFOLD_WORLD_SIZE".into(), "4".into())],
            addresses: vec![[10, 0, 0, 7].into()],
            chosen: false,
            control_port: 29_500,
            lane_ports: vec![29_501, 29_502],
            door: None,
        },
    };
    same(&hello, GOLDEN_HELLO);
    same(&Purpose::Watch { epoch: 7 }, "0c000000 01000000 0700000000000000");
    same(&Purpose::Lane { epoch: 7, lane: 1 }, "0e000000 02000000 0700000000000000 0100");
    same(&Answer::Welcome, "04000000 00000000");
    let refused = Answer::Refused { reason: "no".into(), again: Again::Never };
    same(&refused, "12000000 01000000 0200000000000000 6e6f 02000000");
}

#[test]
fn control_messages() {
    same(&Message::Missing(vec![2]), "10000000 00000000 0100000000000000 02000000");
    same(&Message::Prepared { epoch: 7, maps: true }, "0d000000 02000000 0700000000000000 01");
    same(&Message::Restart, "04000000 04000000");
    same(&Message::Leave { origin: 3 }, "08000000 07000000 03000000");
    let goodbye = Message::Goodbye { origin: 3, group: 1, members: vec![0, 3], calls: 5, hash: 6 };
    same(&goodbye, GOLDEN_GOODBYE);
    same(&Message::Silent { rank: 3 }, "08000000 0a000000 03000000");
    let heard = Message::Heard { rank: 3, ago_ms: Some(9), left: false };
    same(&heard, "12000000 0b000000 03000000 01 0900000000000000 00");
    let verdict = Verdict {
        epoch: 7,
        seen_by: 1,
        culprit: 3,
        fault: Fault::Protocol { problem: "no".into() },
        waiting: None,
    };
    same(&Message::Verdict(verdict), GOLDEN_VERDICT);
    same(&Message::Differs { group: 7 }, "0c000000 0d000000 0700000000000000");
    let trail = Trail { group: 7, oldest: 8, hashes: vec![9] };
    same(&Message::Trail(trail), GOLDEN_TRAIL);
    let calls = Message::Calls { group: 7, calls: vec![vec![1, 2]] };
    same(&calls, GOLDEN_CALLS);
}

/// What is written is `golden`, and what is read of it is written alike. Of its bytes changed, cut
/// or followed by others nothing is read that breaks a limit.
fn same<T: Serialize + DeserializeOwned>(message: &T, golden: &str) {
    let frame = encode_control(message).unwrap();
    assert_eq!(hex(&frame), plain(golden));
    let (length, body) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_le_bytes(*length) as usize, body.len());
    let read: T = decode_control(body).unwrap();
    assert_eq!(encode_control(&read).unwrap(), frame);
    for position in 0..body.len() {
        assert!(decode_control::<T>(&body[..position]).is_err(), "cut at {position}");
        for flip in 1..=255 {
            let mut changed = body.to_vec();
            changed[position] ^= flip;
            if let Ok(read) = decode_control::<T>(&changed) {
                assert!(encode_control(&read).unwrap().len() <= frame.len() + 4);
            }
        }
    }
    assert!(decode_control::<T>(&[body, &[0]].concat()).is_err(), "bytes left over");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn plain(golden: &str) -> String {
    golden.split_whitespace().collect()
}

fn bytes(golden: &str) -> Vec<u8> {
    let digits = plain(golden);
    let pair = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(pair).collect()
}

const GOLDEN_CONTRACT: &str = "0702060102000000 0100000000000000 0700000000000000 e803000000000000 \
                               0000000000000000 0500000000000000 8877665544332211";
const GOLDEN_HASH: u64 = 0x3ea6_7b7b_d001_f86a;
const GOLDEN_HELLO: &str = "8a000000 0500000000000000 302e312e30 03000000 \
                            02010000000000000000000000000000 0600000000000000 6e6f64652d33 \
                            29000000 0b00000000000000 00000000 0100000000000000 1200000000000000 \
                            414c4c464f4c445f574f524c445f53495a45 0100000000000000 34 \
                            0100000000000000 00000000 0a000007 00 3c73 \
                            0200000000000000 3d73 3e73 00";
const GOLDEN_GOODBYE: &str = "30000000 06000000 03000000 0100000000000000 0200000000000000 \
                              00000000 03000000 0500000000000000 0600000000000000";
const GOLDEN_TRAIL: &str = "24000000 0e000000 0700000000000000 0800000000000000 0100000000000000 \
                            0900000000000000";
const GOLDEN_CALLS: &str = "1e000000 0f000000 0700000000000000 0100000000000000 0200000000000000 \
                            0102";
const GOLDEN_VERDICT: &str =
    "23000000 0c000000 0700000000000000 01000000 03000000 07000000 0200000000000000 6e6f 00";
