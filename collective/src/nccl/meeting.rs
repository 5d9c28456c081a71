//! What the ranks tell each other before NCCL connects them, over the links that they have.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::nccl::sys::ncclUniqueId;

use super::choice::{self, Choice};
use super::driver::Driver;
use super::library::{Nccl, SUCCESS};
use super::presence::Absence;
use super::settings;
use super::word::{self, Word};
use crate::caller::Caller;
use crate::communicator::{Communicator, Kind};
use crate::config::{NcclSettings, Reach};
use crate::contract::Role;
use crate::error::Result;
use crate::report;

/// What a rank needs of its machine.
pub(super) struct Found {
    pub(super) nccl: &'static Nccl,
    pub(super) context: Arc<CudaContext>,
    pub(super) gpu: Choice,
}

/// Looks for driver, GPU (that of the context `given`, where there is one) and NCCL; agrees with the
/// other ranks that all of them have what it takes.
pub(super) fn prepare(
    caller: Caller<'_>,
    limits: NcclSettings,
    given: Option<&Arc<CudaContext>>,
) -> Result<Found> {
    let communicator = caller.communicator;
    let found = find(communicator, limits, given);
    word::agree(
        caller,
        match &found {
            Ok(found) => {
                Word::Ready { nccl: found.nccl.version.to_string(), gpu: found.gpu.clone() }
            }
            Err(absence) => Word::of(absence),
        },
    )?;
    let found = found?;
    if communicator.rank() == 0 && hosts(communicator) > 1 {
        report::warn(
            "NCCL moves data between hosts without encryption; ALLFOLD_NCCL=same-host refuses that",
        );
    }
    Ok(found)
}

/// Rank 0's unique id, or its NCCL's words.
pub(super) fn share_id(caller: Caller<'_>, nccl: &Nccl) -> Result<ncclUniqueId> {
    let mut id = ncclUniqueId { internal: [0; ID_BYTES] };
    // What it is, and then it.
    let mut bytes = [0u8; 1 + ID_WORDS];
    if caller.communicator.rank() == 0 {
        // SAFETY: it writes the id.
        match unsafe { (nccl.functions.get_unique_id)(&mut id) } {
            SUCCESS => {
                bytes[0] = IS_ID;
                bytes[1..=ID_BYTES].copy_from_slice(&id.internal.map(|byte| byte as u8));
            }
            code => {
                let words = nccl.describe(code);
                bytes[1..].iter_mut().zip(words.bytes()).for_each(|(into, byte)| *into = byte);
            }
        }
    }
    caller.broadcast_as(Role::Connect, &mut bytes)?;
    let [kind, rest @ ..] = bytes;
    if kind != IS_ID {
        let words = String::from_utf8_lossy(&rest);
        let words = report::printable(words.trim_end_matches(['\0', char::REPLACEMENT_CHARACTER]));
        return Err(Absence::new(format!("NCCL cannot start: {words}"), SEE_NCCL).into());
    }
    for (into, byte) in id.internal.iter_mut().zip(rest) {
        *into = byte as _;
    }
    Ok(id)
}

fn find(
    communicator: &Communicator,
    limits: NcclSettings,
    given: Option<&Arc<CudaContext>>,
) -> Result<Found, Absence> {
    match limits.reach {
        Reach::Nowhere => {
            return Err(Absence::new(
                "ALLFOLD_NCCL=off keeps this rank from NCCL",
                "leave ALLFOLD_NCCL out, or do not ask for GPUs",
            ));
        }
        Reach::SameHost if hosts(communicator) > 1 => {
            return Err(Absence::new(
                format!(
                    "ALLFOLD_NCCL=same-host keeps NCCL's data within a host, and these ranks are \
                     on {} hosts",
                    hosts(communicator)
                ),
                "ALLFOLD_NCCL=on lets it cross hosts without encryption",
            ));
        }
        Reach::SameHost | Reach::Everywhere => {}
    }
    if let Some((problem, help)) = settings::hindrance() {
        return Err(Absence::new(problem, help));
    }
    let driver = Driver::find().map_err(Clone::clone)?;
    let nccl = Nccl::find().map_err(Clone::clone)?;
    let (index, context) = match given {
        Some(context) => (context.ordinal(), context.clone()),
        None => {
            let index = choice::index(limits.local_rank, driver.gpus);
            (index, CudaContext::new(index).map_err(|error| unusable(index, &error))?)
        }
    };
    let name = context.name().map_err(|error| unusable(index, &error))?;
    let uuid = context.uuid().map_err(|error| unusable(index, &error))?;
    let uuid = uuid.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect();
    let may_share = settings::lets_ranks_share_a_gpu();
    Ok(Found { nccl, context, gpu: Choice { index, of: driver.gpus, name, uuid, may_share } })
}

fn unusable(index: usize, error: &cudarc::driver::DriverError) -> Absence {
    let problem = format!("GPU {index} cannot be used: {}", words(error));
    Absence::new(problem, "`nvidia-smi` on its host says whether it is there and who uses it")
}

/// CUDA's error on one line.
pub(crate) fn words(error: &cudarc::driver::DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => report::printable(&format!("{text} ({name})")),
        _ => format!("CUDA error {}", error.0 as i32),
    }
}

/// On how many hosts its ranks are.
fn hosts(communicator: &Communicator) -> usize {
    match &communicator.kind {
        Kind::Single => 1,
        Kind::Joined(engine) => {
            let peers = &engine.world().peers;
            let member = |rank: &u32| peers.get(*rank as usize);
            let mut firsts: Vec<&crate::world::Peer> = Vec::new();
            for peer in engine.members().iter().filter_map(member) {
                if !firsts.iter().any(|first| first.is_beside(peer)) {
                    firsts.push(peer);
                }
            }
            firsts.len()
        }
    }
}

/// `NCCL_UNIQUE_ID_BYTES` of nccl.h.
const ID_BYTES: usize = 128;
/// Room for it, or for NCCL's words in its place.
const ID_WORDS: usize = 512;
const IS_ID: u8 = 1;
const SEE_NCCL: &str = "NCCL_DEBUG=INFO shows what NCCL looks for; NCCL_SOCKET_IFNAME names the \
                        interface that it uses";
