//! Power cuts of a recorded node, each tried: the drive is mounted, recovered, and compared with
//! what was promised by then.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cut::{Cut, Cutter, Survivors, Window, windows};
use super::drive::Recording;
use super::found::{self, Past};
use super::history::{History, Notes};
use super::stand::Stand;
use super::workload::{self, Producer, Workload};
use crate::daemon::{Daemon, Options, binary, scratch};
use crate::peer::{Peer, batch_of};
use crate::sim::random::Random;

/// Room for everything that the workload leaves, with some to spare.
pub const DRIVE_SIZE: u64 = 384 << 20;
/// Large batches of each of the lives that are recorded. The first two end with a crash, the last
/// with a clean stop.
const BULK_COUNTS: [u64; 3] = [14, 14, 6];
/// Longest wait for work in the background.
const PATIENCE: Duration = Duration::from_secs(60);
/// One image in so many is also recovered by the whole daemon.
const DAEMON_EVERY: usize = 64;
/// A search goes over the recording so many times, so that it is spread evenly whenever it ends.
const PASSES: usize = 31;

/// A daemon on the stand's file system; not started. It ends with this thread: one that outlived
/// it would keep the stand's mounts.
pub fn prepare(stand: &Stand, shards: u16) -> Daemon {
    let with_us = ["setpriv", "--pdeathsig", "KILL", "--"].map(String::from);
    let binary = binary().display().to_string();
    Daemon::prepare(Options {
        command: with_us.into_iter().chain([binary]).collect(),
        shards,
        arguments: workload::arguments(),
        scratch: Some(stand.place().into()),
        ..Default::default()
    })
}

/// A daemon's lives on a drive, recorded from its first start to its clean stop.
pub struct Recorded {
    // Ends before what it stands on.
    daemon: Daemon,
    stand: Stand,
    data: PathBuf,
    /// What the drive was asked.
    pub recording: Arc<Recording>,
    /// What clients asked and were promised.
    pub history: History,
    producer: Producer,
    past: Past,
}

impl Recorded {
    /// Records lives with everything in them that ends on the disk.
    pub fn full(stand: Stand) -> Recorded {
        // Work in the background comes when the node has time for it.
        let recorded = Recorded::new(stand, &BULK_COUNTS, |past| {
            past.recycled > 0 && past.merged > 0 && past.snapshots > 0
        });
        let (past, history) = (&recorded.past, &recorded.history);
        let starts = BULK_COUNTS.len() as u64 * u64::from(workload::SHARDS);
        assert_eq!(past.epochs, starts, "there are crashes and restarts");
        assert!(history.commit_count() > 0, "groups commit");
        assert!(history.deletion_count() > 0, "topics are deleted");
        assert!(history.moved(|topic| topic == "bulk") > 0, "records are deleted");
        assert!(history.moved(workload::is_aging) > 0, "records are too old and go");
        assert!(recorded.producer.last.is_some(), "an idempotent producer has answers");
        recorded
    }

    /// Records one life for each count of large batches; each but the last ends with a crash, and
    /// the last goes on until what is on the disk is enough.
    pub fn new(
        mut stand: Stand,
        bulk_counts: &[u64],
        is_enough: impl Fn(&Past) -> bool,
    ) -> Recorded {
        stand.mount().expect("a new file system");
        let mut daemon = prepare(&stand, workload::SHARDS);
        stand.drive.lock().record();
        let notes = Notes::new(stand.drive.clone());
        let mut workload = Workload::new(&notes);
        let (last, killed) = bulk_counts.split_last().expect("a life at least");
        daemon.restart();
        workload.make_topics(&mut Peer::connect(daemon.kafka()));
        for count in killed {
            workload.run(daemon.kafka(), *count, || daemon.kill());
            daemon.restart();
        }
        workload.run(daemon.kafka(), *last, || {});
        let producer = workload.producer().expect("it had answers").clone();
        let data = daemon.data_dir().to_path_buf();
        wait_for_past(&mut Peer::connect(daemon.kafka()), &data, is_enough);
        assert!(daemon.terminate().success());
        let past = found::past(&data).expect("a node that ended well");
        stand.unmount();
        stand.cache().expect("the file can be opened once more");
        let recording = Arc::new(stand.drive.lock().take_recording());
        let history = notes.into_history();
        Recorded { daemon, stand, data, recording, history, producer, past }
    }

    /// Mounts what a power cut left, recovers it, and compares it with the promises of its moment
    /// and of another one that this image may be of.
    pub fn check(&mut self, cut: Cut, also_at: Option<usize>) -> Result<(), String> {
        self.stand.insert(cut.image);
        self.stand.mount()?;
        let found = found::recover(&self.data);
        self.stand.unmount();
        let found = found?;
        let mut moments = [Some(cut.moment), also_at].into_iter().flatten();
        moments.try_for_each(|moment| self.history.judge(moment, &found))
    }

    /// The same with the whole daemon, which has to go on working, too.
    fn check_with_daemon(&mut self, cut: Cut) -> Result<(), String> {
        self.stand.insert(cut.image);
        self.stand.mount()?;
        self.daemon.restart();
        let mut peer = Peer::connect(self.daemon.kafka());
        let found = found::ask(&mut peer, &self.history, cut.moment);
        self.history.judge(cut.moment, &found)?;
        if let Some((batch, offset)) = &self.producer.last
            && found.records.get(&("once".into(), 0)).is_some_and(|log| log.contains_key(offset))
        {
            let again = peer.append("once", 0, batch.clone());
            assert_eq!(again, *offset, "a known batch of an idempotent producer");
        }
        peer.make_topic("afterwards", 2);
        for partition in 0..2 {
            assert_eq!(peer.append("afterwards", partition, batch_of(b"first")), 0);
            assert_eq!(peer.values("afterwards", partition, 0), [&b"first"[..]]);
        }
        self.daemon.kill();
        self.stand.unmount();
        Ok(())
    }

    /// Says what is in the recording.
    pub fn describe(&self) -> String {
        let windows = windows(&self.recording.events);
        format!(
            "{} events, {} writes in {} windows between flushes; {} records and {} commits \
             acknowledged, {} topics deleted, {} records taken by retention; {:?}",
            self.recording.events.len(),
            windows.iter().map(Window::len).sum::<usize>(),
            windows.len(),
            self.history.record_count(),
            self.history.commit_count(),
            self.history.deletion_count(),
            self.history.moved(workload::is_aging),
            self.past,
        )
    }

    /// Tries the images of all windows, until there are no more or the time is over: those with
    /// whole windows alone, or of all kinds.
    pub fn search(
        &mut self,
        seed: u64,
        lasts: Option<Duration>,
        only_flushes: bool,
    ) -> Result<Tried, String> {
        let begin = Instant::now();
        let recording = self.recording.clone();
        let windows = windows(&recording.events);
        let mut images = images(&windows);
        let has_parts = |image: &TriedImage| {
            !matches!(image.survivors, Survivors::Nothing | Survivors::Everything)
        };
        images.retain(|image| !only_flushes || !has_parts(image));
        let mut tried = Tried { of: images.len(), ..Tried::default() };
        // Passes that follow each other are not neighbours.
        for pass in (0..PASSES).map(|pass| pass * 12 % PASSES) {
            println!("{} of {} images tried", tried.images, tried.of);
            let mut cutter = Cutter::new(&recording);
            for index in (pass..images.len()).step_by(PASSES) {
                if lasts.is_some_and(|lasts| begin.elapsed() >= lasts) {
                    return Ok(tried);
                }
                let image = &images[index];
                let window = &windows[image.window];
                let mut random = Random::new(seed << 32 | index as u64);
                let cut = cutter.cut(window, image.survivors, &mut random);
                let with_daemon = tried.images.is_multiple_of(DAEMON_EVERY);
                self.try_one(&cut, image.also_at, with_daemon).map_err(|why| {
                    let saved = scratch().join("power-cut.img");
                    let place = match File::create(&saved).and_then(|file| cut.image.save(&file)) {
                        Ok(()) => saved.display().to_string(),
                        Err(error) => format!("not saved: {error}"),
                    };
                    format!(
                        "seed {seed}, image {index}, {:?} of {window:?} at {}: {why}\nthe drive: \
                         {place}, the data: {}",
                        image.survivors,
                        cut.moment,
                        self.inside().display()
                    )
                })?;
                tried.images += 1;
                tried.with_daemon += usize::from(with_daemon);
                *tried.kinds.entry(format!("{:?}", image.survivors)).or_default() += 1;
                if image.also_at.is_some() {
                    *tried.kinds.entry(format!("{:?}", Survivors::Everything)).or_default() += 1;
                }
                tried.took = begin.elapsed();
            }
        }
        Ok(tried)
    }

    fn try_one(
        &mut self,
        cut: &Cut,
        also_at: Option<usize>,
        with_daemon: bool,
    ) -> Result<(), String> {
        self.check(cut.clone(), also_at)?;
        if with_daemon { self.check_with_daemon(cut.clone()) } else { Ok(()) }
    }

    /// The data directory, seen from the file system's root.
    fn inside(&self) -> &Path {
        self.data.strip_prefix(self.stand.place()).unwrap_or(&self.data)
    }
}

/// Waits until the manifests of a node that runs tell of enough.
fn wait_for_past(peer: &mut Peer, data: &Path, is_enough: impl Fn(&Past) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Files come and go meanwhile, and then there is no answer.
        let past = found::past(data);
        if past.as_ref().is_ok_and(&is_enough) {
            return;
        }
        assert!(Instant::now() < deadline, "it never came to everything: {past:?}");
        peer.pause("plain", 0);
    }
}

/// One image that is tried.
struct TriedImage {
    window: usize,
    survivors: Survivors,
    /// What is left of nothing of this window is everything of the one before: the same drive, at
    /// another moment.
    also_at: Option<usize>,
}

/// The images of all windows that differ from each other.
fn images(windows: &[Window]) -> Vec<TriedImage> {
    let mut images = Vec::new();
    for (window, range) in windows.iter().enumerate() {
        for survivors in Survivors::ALL {
            let is_known = match survivors {
                Survivors::Everything => window + 1 < windows.len(),
                // Of one write, there is all or nothing.
                Survivors::Writes(_) => range.len() == 1,
                Survivors::Nothing | Survivors::Beginning | Survivors::Sectors(_) => false,
            };
            let also_at = match (survivors, window.checked_sub(1)) {
                (Survivors::Nothing, Some(before)) => Some(windows[before].end),
                _ => None,
            };
            if !is_known {
                images.push(TriedImage { window, survivors, also_at });
            }
        }
    }
    images
}

/// What a search tried, without a failure.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    /// Images that there are.
    pub of: usize,
    /// Images that were tried.
    pub images: usize,
    /// Images that the whole daemon recovered, too.
    pub with_daemon: usize,
    /// Cuts by what they left; nothing of one window is everything of the one before.
    pub kinds: BTreeMap<String, usize>,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} images tried in {:.0} s, {} ms each, {} with the daemon, too; nothing lost \
             and nothing refused: {:?}",
            self.images,
            self.of,
            self.took.as_secs_f64(),
            self.took.as_millis() / self.images.max(1) as u128,
            self.with_daemon,
            self.kinds
        )
    }
}
