//! Where a run is made: facts of the machine, counters of the block device and of a process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::Machine;

/// File systems that forget everything: nothing durable can be measured on them.
const FORGETFUL: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];

/// Bytes of a sector in the kernel's statistics, whatever the device has.
const SECTOR_SIZE: u64 = 512;

/// Collects the facts. `data` is the directory whose file system counts.
pub fn facts(data: &Path) -> Result<Machine, String> {
    let mount = Mount::of(data)?;
    let device = Device::of(data);
    let processor = text("/proc/cpuinfo");
    let queue = |name: &str| match &device {
        Some(device) => text(device.path.join("queue").join(name)).trim().to_owned(),
        None => String::new(),
    };
    let scheduler = queue("scheduler");
    let chosen = scheduler.split(['[', ']']).nth(1).unwrap_or(&scheduler).to_owned();
    Ok(Machine {
        processor: field(&processor, "model name").unwrap_or_default().to_owned(),
        cores: std::thread::available_parallelism().map_or(0, |count| count.get() as u32),
        memory_bytes: memory_bytes(),
        is_virtual: field(&processor, "flags").is_some_and(|flags| flags.contains("hypervisor")),
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        file_system: mount.kind,
        mount_options: mount.options,
        disk: device.as_ref().map(|device| device.name()).unwrap_or_default(),
        disk_model: device.as_ref().map(Device::model).unwrap_or_default(),
        disk_cache: queue("write_cache"),
        disk_scheduler: chosen,
        load_average_before: first_number(&text("/proc/loadavg")),
    })
}

/// Refuses a directory on a file system that keeps nothing.
pub fn check_keeps(data: &Path) -> Result<(), String> {
    let mount = Mount::of(data)?;
    if FORGETFUL.contains(&mount.kind.as_str()) {
        return Err(format!(
            "{} is on {}, where nothing is durable: choose another directory with --data-dir",
            data.display(),
            mount.kind
        ));
    }
    Ok(())
}

/// The commit of the tree that the command runs in, and what makes it doubtful.
pub fn commit(binary: Option<&Path>) -> (String, Vec<String>) {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(mut commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return ("unknown".to_owned(), vec!["not run in a git tree".to_owned()]);
    };
    if git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|text| !text.is_empty()) {
        commit.push_str("-dirty");
    }
    let mut notes = Vec::new();
    let built = binary.and_then(|path| fs::metadata(path).ok()).map(|file| file.mtime());
    let committed = git(&["log", "-1", "--format=%ct"]).and_then(|text| text.parse::<i64>().ok());
    if let (Some(built), Some(committed)) = (built, committed)
        && built < committed
    {
        notes.push("the server was built before this commit".to_owned());
    }
    (commit, notes)
}

/// The mount that a path is on.
struct Mount {
    kind: String,
    options: String,
}

impl Mount {
    fn of(path: &Path) -> Result<Self, String> {
        let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
        let mut best: Option<(usize, Self)> = None;
        for line in text("/proc/self/mountinfo").lines() {
            // Number, parent, device, root, place, options, optional fields, "-", kind, …
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let before: Vec<&str> = before.split(' ').collect();
            let (Some(place), Some(options)) = (before.get(4), before.get(5)) else { continue };
            let place = unescape(place);
            // Of mounts on one place, the last hides the others.
            if path.starts_with(&place)
                && best.as_ref().is_none_or(|(size, _)| *size <= place.len())
            {
                let kind = after.split(' ').next().unwrap_or_default().to_owned();
                let options = (*options).to_owned();
                best = Some((place.len(), Self { kind, options }));
            }
        }
        best.map(|(_, mount)| mount).ok_or_else(|| format!("{}: on no mount", path.display()))
    }
}

/// Spaces and the like in a path of mountinfo.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// A whole block device.
#[derive(Debug, Clone)]
pub struct Device {
    path: PathBuf,
}

/// Its counters since the machine started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Writes done.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
}

impl Device {
    /// The one below a path's file system, if there is exactly one.
    pub fn of(path: &Path) -> Option<Self> {
        let device = fs::metadata(path).ok()?.dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let path = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        // The kernel counts flushes for whole devices only.
        let whole = if path.join("partition").exists() { path.parent()?.to_owned() } else { path };
        Some(Self { path: whole })
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn model(&self) -> String {
        let model = text(self.path.join("device/model")).trim().to_owned();
        if !model.is_empty() {
            return model;
        }
        let driver = fs::canonicalize(self.path.join("device/driver")).unwrap_or_default();
        driver.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where the counters are.
    pub fn source(&self) -> String {
        format!("/sys/block/{}/stat, all users of the device", self.name())
    }

    /// As they are now.
    pub fn counters(&self) -> Option<DeviceCounters> {
        DeviceCounters::parse(&text(self.path.join("stat")))
    }
}

impl DeviceCounters {
    fn parse(stat: &str) -> Option<Self> {
        let numbers: Vec<u64> = stat.split_whitespace().map_while(|it| it.parse().ok()).collect();
        Some(Self {
            writes: *numbers.get(4)?,
            written_bytes: *numbers.get(6)? * SECTOR_SIZE,
            flushes: *numbers.get(15)?,
        })
    }

    /// What was counted since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            writes: self.writes.saturating_sub(before.writes),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
            flushes: self.flushes.saturating_sub(before.flushes),
        }
    }
}

/// Processor seconds of a process so far, its threads and waited-for children included.
pub fn process_cpu_seconds(pid: u32) -> Option<f64> {
    cpu_seconds(&text(format!("/proc/{pid}/stat")))
}

/// Processor seconds of a thread of ours.
pub fn task_cpu_seconds(task: i32) -> Option<f64> {
    cpu_seconds(&text(format!("/proc/self/task/{task}/stat")))
}

/// Processor seconds so far of those threads of a process whose names begin like this.
pub fn threads_cpu_seconds(pid: u32, name: &str) -> Option<f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let paths = tasks.filter_map(|task| Some(task.ok()?.path()));
    let ours = paths.filter(|path| text(path.join("comm")).starts_with(name));
    Some(ours.filter_map(|path| cpu_seconds(&text(path.join("stat")))).sum())
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name, in parentheses, may hold anything; fields 14 to 17 are user and system time, then
    // those of children, in hundredths of a second.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: Option<f64> =
        fields.get(11..15)?.iter().map(|field| field.parse::<f64>().ok()).sum();
    ticks.map(|ticks| ticks / 100.0)
}

/// Memory that a process has resident.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = text(format!("/proc/{pid}/status"));
    kibibytes(field(&status, "VmRSS")?)
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

fn memory_bytes() -> u64 {
    field(&text("/proc/meminfo"), "MemTotal").and_then(kibibytes).unwrap_or(0)
}

fn kibibytes(text: &str) -> Option<u64> {
    Some(text.split(' ').next()?.parse::<u64>().ok()? << 10)
}

/// The value behind `name:`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn first_number(text: &str) -> f64 {
    text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

/// What cannot be read is empty: a fact is then unknown, and nothing fails for it.
fn text(path: impl AsRef<Path>) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_counters_are_read_from_their_places() {
        let stat = " 1 2 3 4 50 6 700 8 0 10 11 12 13 14 15 160 17\n";
        let counters = DeviceCounters::parse(stat).expect("all there");
        assert_eq!(counters, DeviceCounters { writes: 50, written_bytes: 700 * 512, flushes: 160 });
        assert_eq!(DeviceCounters::parse("1 2 3 4 5 6 7 8 9 10 11"), None, "an old kernel");
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "12 (a) b) S 1 1 1 0 -1 4194304 1 2 3 4 150 50 10 5 20 0 9 0";
        assert_eq!(cpu_seconds(stat), Some(2.15));
        assert_eq!(cpu_seconds("gone"), None);
    }

    #[test]
    fn a_directory_without_a_disk_is_refused() {
        assert!(check_keeps(Path::new("/dev")).is_err());
        assert!(check_keeps(Path::new("/nowhere/at/all")).is_err());
    }

    #[test]
    fn this_machine_is_described() {
        let facts = facts(Path::new(".")).expect("facts");
        assert!(facts.cores > 0 && facts.memory_bytes > 0, "{facts:?}");
        assert!(!facts.kernel.is_empty() && !facts.file_system.is_empty(), "{facts:?}");
    }
}
