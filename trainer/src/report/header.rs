//! What rank 0 says before the first step: what is trained, and where.

use allfold::Communicator;

use super::{counted, grouped, hosts};
use crate::options::Precision;
use crate::resume::Resumed;
use crate::settings::name;
use crate::training::Training;

pub(super) fn header(training: &Training) -> Vec<String> {
    let Training { settings, world, .. } = training;
    let peers = world.peers();
    let hosts = hosts(&peers);
    let on = match hosts.len() {
        0 | 1 => "this host".to_string(),
        many => format!("{many} hosts"),
    };
    let data = &training.data;
    let held_out = match &data.validation {
        Some(validation) => format!("{} validation, ", grouped(validation.len())),
        None => String::new(),
    };
    let precision = match settings.precision {
        Precision::F32 => "",
        Precision::F64 => " in f64",
    };
    let clip = settings.clip_norm.map(|norm| format!(", clip {norm}")).unwrap_or_default();
    let batches = match settings.accumulate {
        1 => String::new(),
        batches => format!("{batches} x "),
    };
    let mut lines = vec![
        format!(
            "allfold {} · {} on {on} · {} · {}",
            env!("CARGO_PKG_VERSION"),
            counted(world.size(), "rank"),
            world.transport(),
            world.security(),
        ),
        format!(
            "  data   {}: {} train, {held_out}{} test, {}",
            data.name,
            grouped(data.train.len()),
            grouped(data.test.len()),
            data.shape,
        ),
        format!(
            "  model  {}, {} parameters{precision} · {}, lr {}{clip} · seed {}",
            settings.model,
            grouped(training.optimizer.elements()),
            name(&settings.optimizer),
            settings.lr,
            settings.seed,
        ),
        format!(
            "  batch  {batches}{} a step, {}{} an epoch",
            grouped(settings.batch_size),
            shares(settings.batch_size, world),
            counted(settings.steps_per_epoch, "step"),
        ),
    ];
    lines.extend(training.optimizer.gpus().map(|described| gpus(&described, hosts.len())));
    if training.optimizer.overlaps() {
        let buckets = grouped(training.optimizer.buckets());
        lines.push(format!("  sums   {buckets} all-reduces a step, each while backward goes on"));
    }
    lines.extend(training.resumed.as_ref().map(resumed));
    let last = hosts.len().saturating_sub(1);
    for (at, (host, pids)) in hosts.iter().enumerate() {
        let start = if at == 0 { "  pids  " } else { "        " };
        let host = if last > 0 { format!(" {host}:") } else { String::new() };
        let hint = if at == last && world.size() > 1 { "    kill -9 one and see" } else { "" };
        lines.push(format!("{start}{host}{}{hint}", few(pids)));
    }
    lines
}

/// What the first line says of transport and security is not of what NCCL moves.
fn gpus(described: &str, hosts: usize) -> String {
    let between = if hosts > 1 { ", not encrypted between hosts" } else { "" };
    format!("  gpus   {described}{between}")
}

/// The first pids, each after a space.
fn few(pids: &[u32]) -> String {
    let mut text: String = pids.iter().take(PIDS).map(|pid| format!(" {pid}")).collect();
    if pids.len() > PIDS {
        text += &format!(" and {} more", pids.len() - PIDS);
    }
    text
}

/// `25 a rank, `; nothing where there is one rank.
fn shares(batch_size: usize, world: &Communicator) -> String {
    let ranks = world.size();
    let fewest = batch_size / ranks;
    match (ranks, batch_size % ranks) {
        (1, _) => String::new(),
        (_, 0) => format!("{} a rank, ", grouped(fewest)),
        _ => format!("{} or {} a rank, ", grouped(fewest), grouped(fewest + 1)),
    }
}

/// Where a training starts that was asked to resume.
fn resumed(resumed: &Resumed) -> String {
    match &resumed.path {
        Some(path) => {
            format!("  resume step {} of {}", grouped(resumed.step as usize), path.display())
        }
        None => "  resume no checkpoint yet: starts fresh".into(),
    }
}

/// Pids shown of each host.
const PIDS: usize = 16;

#[cfg(test)]
mod tests {
    use allfold::Peer;

    use super::*;
    use crate::options::Options;

    #[test]
    fn the_header_says_what_is_trained() {
        let world = Communicator::single();
        let lines_of = |options: &Options| header(&Training::new(options, &world).unwrap());
        let lines = lines_of(&Options::default());
        let version = env!("CARGO_PKG_VERSION");
        let start = format!("allfold {version} · 1 rank on this host · ");
        assert!(lines[0].starts_with(&start), "{}", lines[0]);
        assert_eq!(
            lines[1..],
            [
                "  data   digits (embedded): 1,438 train, 359 test, 8x8".to_string(),
                "  model  cnn, 13,706 parameters · adamw, lr 0.01 · seed 1".to_string(),
                "  batch  100 a step, 15 steps an epoch".to_string(),
                format!("  pids   {}", std::process::id()),
            ]
        );
        let options =
            Options { validation: 200, accumulate: 4, clip_norm: Some(1.5), ..Options::default() };
        assert_eq!(
            lines_of(&options)[1..4],
            [
                "  data   digits (embedded): 1,238 train, 200 validation, 359 test, 8x8",
                "  model  cnn, 13,706 parameters · adamw, lr 0.01, clip 1.5 · seed 1",
                "  batch  4 x 100 a step, 4 steps an epoch",
            ]
        );
    }

    #[test]
    fn the_header_says_where_it_resumes() {
        let found = Resumed {
            path: Some("a/b".into()),
            step: 1200,
            skipped: Vec::new(),
            changes: Vec::new(),
            counts_epochs: true,
        };
        assert_eq!(resumed(&found), "  resume step 1,200 of a/b");
        let nothing = Resumed { path: None, ..found };
        assert_eq!(resumed(&nothing), "  resume no checkpoint yet: starts fresh");
    }

    #[test]
    fn what_nccl_moves_between_hosts_is_said_to_be_plain() {
        let described = "one a rank, this one's NVIDIA H100; gradients by NCCL";
        assert_eq!(gpus(described, 1), format!("  gpus   {described}"));
        let between = format!("  gpus   {described}, not encrypted between hosts");
        assert_eq!(gpus(described, 2), between);
    }

    #[test]
    fn pids_stand_beside_their_hosts() {
        let peer = |rank: usize, host: &str| Peer::new(rank, host, 100 + rank as u32);
        let peers: Vec<Peer> =
            (0..20).map(|rank| peer(rank, if rank < 18 { "a" } else { "b" })).collect();
        let hosts = hosts(&peers);
        assert_eq!(hosts[1], ("b", vec![118, 119]));
        let text = few(&hosts[0].1);
        assert!(text.starts_with(" 100 101 "));
        assert!(text.ends_with(" 115 and 2 more"), "{text}");
    }
}
