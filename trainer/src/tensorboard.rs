//! Scalars for TensorBoard.
//!
//! An event file is a TFRecord file of protocol buffers. A record is the length of its payload
//! (u64, little-endian), a checksum of these bytes, the payload, its checksum
//! (<https://www.tensorflow.org/tutorials/load_data/tfrecord>). Of the messages `Event` and
//! `Summary` (`event.proto` and `summary.proto` of TensorBoard) eight fields are needed, so they
//! are written by hand.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::problem::Problem;

/// A file that TensorBoard reads while it grows.
///
/// The first failure to write is told once; nothing is written after it, because TensorBoard
/// reads no further than a record that is cut short.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
    /// Whole records that are not in the file yet.
    records: Vec<u8>,
    flushed: Instant,
    problem: Option<Problem>,
    failed: bool,
}

impl EventFile {
    /// Makes `folder`, and a file in it that no other process writes. Where training goes on from
    /// a checkpoint, `resumed_at` is its step: TensorBoard then forgets what the run before it
    /// wrote of later steps.
    ///
    /// # Errors
    /// Why there is no such file; training can go on without.
    pub fn create(folder: &Path, resumed_at: Option<u64>) -> Result<Self, Problem> {
        let name = name(since_epoch().as_secs());
        let path = folder.join(name);
        fs::create_dir_all(folder).map_err(|error| Problem::new(WHAT, folder, &error))?;
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.map_err(|error| Problem::new(WHAT, &path, &error))?;
        let mut file = Self::on(file, path);
        if let Some(step) = resumed_at {
            file.records
                .extend(record(&start(since_epoch().as_secs_f64(), step.saturating_add(1))));
        }
        file.flush();
        file.problem().map_or(Ok(file), Err)
    }

    fn on(file: File, path: PathBuf) -> Self {
        let first = event(since_epoch().as_secs_f64(), &[Field::Bytes(FILE_VERSION, VERSION)]);
        Self {
            path,
            file,
            records: record(&first),
            flushed: Instant::now(),
            problem: None,
            failed: false,
        }
    }

    /// Adds the values of a step. They are in the file within a second of the next call, or when
    /// this is flushed or dropped.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) {
        if self.failed {
            return;
        }
        self.records.extend(record(&summary(since_epoch().as_secs_f64(), step, values)));
        if self.flushed.elapsed() >= FLUSH_AFTER {
            self.flush();
        }
    }

    /// Adds one value.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) {
        self.scalars(step, &[(tag, value)]);
    }

    /// Hands all values to the system.
    pub fn flush(&mut self) {
        self.flushed = Instant::now();
        if let Err(error) = self.file.write_all(&self.records) {
            self.failed = true;
            self.problem.get_or_insert_with(|| Problem::new(WHAT, &self.path, &error));
        }
        self.records.clear();
    }

    /// What went wrong since the last call: once at most.
    pub fn problem(&mut self) -> Option<Problem> {
        self.problem.take()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for EventFile {
    fn drop(&mut self) {
        if !self.failed {
            self.flush();
        }
    }
}

/// TensorBoard takes the files of a folder in the order of their names: time comes first.
fn name(seconds: u64) -> String {
    static FILES: AtomicU64 = AtomicU64::new(0);
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy().replace('/', "-");
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    format!("events.out.tfevents.{seconds:010}.{host}.{}.{number}", std::process::id())
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let checksum = |bytes| masked(crc32c(bytes)).to_le_bytes();
    [&length, &checksum(&length)[..], payload, &checksum(payload)].concat()
}

fn summary(wall_time: f64, step: u64, values: &[(&str, f32)]) -> Vec<u8> {
    let values: Vec<Vec<u8>> = values
        .iter()
        .map(|&(tag, value)| {
            message(&[Field::Bytes(TAG, tag.as_bytes()), Field::Float(SIMPLE_VALUE, value)])
        })
        .collect();
    let values: Vec<Field<'_>> = values.iter().map(|value| Field::Bytes(VALUE, value)).collect();
    event(wall_time, &[Field::Integer(STEP, step), Field::Bytes(SUMMARY, &message(&values))])
}

/// Values of `step` and later that were written before no longer count.
fn start(wall_time: f64, step: u64) -> Vec<u8> {
    let log = message(&[Field::Integer(STATUS, STARTED)]);
    event(wall_time, &[Field::Integer(STEP, step), Field::Bytes(SESSION_LOG, &log)])
}

fn event(wall_time: f64, fields: &[Field<'_>]) -> Vec<u8> {
    [message(&[Field::Double(WALL_TIME, wall_time)]), message(fields)].concat()
}

/// A field of a message by its number.
enum Field<'a> {
    Integer(u64, u64),
    Double(u64, f64),
    Float(u64, f32),
    /// Text, or a message.
    Bytes(u64, &'a [u8]),
}

/// <https://protobuf.dev/programming-guides/encoding/>
fn message(fields: &[Field<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let key = |bytes: &mut Vec<u8>, number: u64, kind: u64| varint(bytes, number << 3 | kind);
    for field in fields {
        match *field {
            Field::Integer(number, value) => {
                key(&mut bytes, number, 0);
                varint(&mut bytes, value);
            }
            Field::Double(number, value) => {
                key(&mut bytes, number, 1);
                bytes.extend(value.to_le_bytes());
            }
            Field::Bytes(number, value) => {
                key(&mut bytes, number, 2);
                varint(&mut bytes, value.len() as u64);
                bytes.extend(value);
            }
            Field::Float(number, value) => {
                key(&mut bytes, number, 5);
                bytes.extend(value.to_le_bytes());
            }
        }
    }
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The checksum of bytes that hold checksums would be weak: TFRecord turns and shifts it.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C: the polynomial of Castagnoli, as in RFC 3720, section 12.1.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| crc >> 8 ^ CRC_TABLE[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(!0, step)
}

/// The checksum of each byte, bits in the reverse order.
static CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// TensorBoard looks for new values every 5 s by default.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// What cannot be done, in words.
const WHAT: &str = "no values for TensorBoard";
/// What the first event says.
const VERSION: &[u8] = b"brain.Event:2";
/// `Event.wall_time`
const WALL_TIME: u64 = 1;
/// `Event.step`
const STEP: u64 = 2;
/// `Event.file_version`
const FILE_VERSION: u64 = 3;
/// `Event.summary`
const SUMMARY: u64 = 5;
/// `Event.session_log`
const SESSION_LOG: u64 = 7;
/// `SessionLog.status`
const STATUS: u64 = 1;
/// `SessionLog.START`
const STARTED: u64 = 1;
/// `Summary.value`
const VALUE: u64 = 1;
/// `Summary.Value.tag`
const TAG: u64 = 1;
/// `Summary.Value.simple_value`
const SIMPLE_VALUE: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn records_are_those_of_tensorboard_itself() {
        // Written by tensorboard 2.21's RecordWriter.
        let first = event(1.5, &[Field::Bytes(FILE_VERSION, VERSION)]);
        assert_eq!(
            hex(&record(&first)),
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c"
        );
        let values = summary(1.5, 300, &[("loss/train", 0.25), ("accuracy", 0.5)]);
        assert_eq!(
            hex(&record(&values)),
            "3200000000000000241956ec09000000000000f83f10ac022a240a110a0a6c6f73732f747261696e15\
             0000803e0a0f0a086163637572616379150000003f584b9d74"
        );
        assert_eq!(hex(&start(1.5, 201)), "09000000000000f83f10c9013a020801");
    }

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_full_disk_is_told_once() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut file = EventFile::on(full, "runs/events".into());
        for step in 0..3 {
            file.scalar("loss", step, 0.5);
            file.flush();
        }
        let expected =
            "no values for TensorBoard: runs/events: No space left on device (os error 28)";
        assert_eq!(file.problem().map(|it| it.to_string()).as_deref(), Some(expected));
        file.scalar("loss", 3, 0.5);
        file.flush();
        assert_eq!(file.problem(), None);
    }
}
