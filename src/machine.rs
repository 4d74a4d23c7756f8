//! What the operating system tells about this machine and this process. What a system does not tell
//! is `None`, never a guess.

#[cfg(any(target_os = "linux", test))]
use std::path::Path;
use std::{path::PathBuf, time::Instant};
use sysinfo::{
    CpuRefreshKind, MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System,
};

/// Memory that this process may still take, in bytes: the system's, or its control groups' if less.
pub fn available_memory() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let free = system.available_memory();
    let limit = groups_leave().unwrap_or(u64::MAX);
    Some(free.min(limit)).filter(|&bytes| bytes > 0)
}

/// Memory of the machine, or of its container if that has less, in bytes.
pub fn total_memory() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let limit = system
        .cgroup_limits()
        .map_or(u64::MAX, |limits| limits.total_memory);
    Some(system.total_memory().min(limit)).filter(|&bytes| bytes > 0)
}

/// The operating system's name and version, its kernel's, and what processors it is made for.
pub fn system_name() -> String {
    let known = [
        System::long_os_version(),
        System::kernel_long_version().into(),
        Some(std::env::consts::ARCH.to_owned()),
    ];
    known.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The user's folder for what this program keeps from run to run; it need not exist yet.
pub fn state_folder() -> Option<PathBuf> {
    let var = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = var("XDG_STATE_HOME")
        .or_else(|| var("LOCALAPPDATA"))
        .or_else(|| var("HOME").map(|home| home.join(".local/state")))?;
    Some(folder.join("gossamer"))
}

/// What the control groups of this process leave it.
#[cfg(target_os = "linux")]
fn groups_leave() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups_under(Path::new("/sys/fs/cgroup"), &groups)
}

/// What the control groups of this process leave it.
#[cfg(not(target_os = "linux"))]
fn groups_leave() -> Option<u64> {
    None
}

/// The least that a process's control groups, `groups` as /proc writes them, leave it in the hierarchies
/// mounted at `root`: each group's limit, less the anonymous memory in it, and so for all groups above.
/// (Page cache can be had back: mapped models would count against themselves.) In a container, whose
/// groups may have other names outside, the mount's own root is its group.
#[cfg(any(target_os = "linux", test))]
fn groups_under(root: &Path, groups: &str) -> Option<u64> {
    let number =
        |file: &Path| -> Option<u64> { std::fs::read_to_string(file).ok()?.trim().parse().ok() };
    let anonymous = |file: &Path, key: &str| -> Option<u64> {
        let stat = std::fs::read_to_string(file).ok()?;
        let line = stat.lines().find_map(|line| line.strip_prefix(key));
        line?.trim().parse().ok()
    };
    let left = |group: &Path, limit: &str, key: &str| {
        let limit = number(&group.join(limit))?;
        let used = anonymous(&group.join("memory.stat"), key).unwrap_or(0);
        Some(limit.saturating_sub(used))
    };
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // Version 2 has one line without controllers, and may be mounted beside version 1.
        let (mounts, limit, key) = match controllers {
            "" => (
                vec![root.into(), root.join("unified")],
                "memory.max",
                "anon ",
            ),
            list if list.split(',').any(|name| name == "memory") => (
                vec![root.join("memory")],
                "memory.limit_in_bytes",
                "total_rss ",
            ),
            _ => continue,
        };
        for mount in mounts {
            let path = Path::new(path.trim_start_matches('/'));
            let groups = path.ancestors().map(|group| mount.join(group));
            let lefts = groups.filter_map(|group| left(&group, limit, key));
            least = least.into_iter().chain(lefts).min();
        }
    }
    least
}

/// What a process holds in memory now, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resident {
    /// Memory of its own.
    pub anonymous: u64,
    /// Pages of files, its program's and libraries' among them, and memory shared with others.
    pub files: u64,
}

impl Resident {
    /// Both.
    pub fn bytes(&self) -> u64 {
        self.anonymous + self.files
    }
}

/// What this process holds in memory.
#[cfg(target_os = "linux")]
pub fn resident() -> Option<Resident> {
    resident_of(std::process::id())
}

/// What this process holds in memory.
#[cfg(not(target_os = "linux"))]
pub fn resident() -> Option<Resident> {
    None
}

/// What a process holds in memory, where the system tells.
#[cfg(target_os = "linux")]
pub fn resident_of(process: u32) -> Option<Resident> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Resident {
        anonymous: kib("RssAnon:")? * 1024,
        files: (kib("RssFile:")? + kib("RssShmem:")?) * 1024,
    })
}

/// The processor's name.
pub fn cpu_name() -> Option<String> {
    let what = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
    let system = System::new_with_specifics(what);
    let name = system.cpus().first()?.brand().trim().to_string();
    Some(name).filter(|name| !name.is_empty())
}

/// The names of NVIDIA's GPUs, where their driver tells it without being started (Linux).
pub fn nvidia_names() -> Vec<String> {
    nvidia_names_under(Path::new("/proc/driver/nvidia/gpus"))
}

fn nvidia_names_under(root: &Path) -> Vec<String> {
    let name = |gpu: std::fs::DirEntry| {
        let facts = std::fs::read_to_string(gpu.path().join("information")).ok()?;
        let name = facts.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(name.trim().to_owned())
    };
    let gpus = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut names: Vec<String> = gpus.filter_map(name).collect();
    names.sort_unstable();
    names
}

/// The most memory that this process has held at once, in bytes, mapped files counted.
#[cfg(target_os = "linux")]
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The most memory that this process has held at once, in bytes, mapped files counted.
#[cfg(all(unix, not(target_os = "linux")))]
#[allow(unsafe_code)]
pub fn peak_memory() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole rusage, all zeros is a valid one, and the call keeps nothing.
    let (status, usage) = unsafe {
        let status = libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        (status, usage.assume_init())
    };
    // Apple counts bytes, the others KiB.
    let unit = if cfg!(target_vendor = "apple") {
        1
    } else {
        1024
    };
    (status == 0).then_some(usage.ru_maxrss as u64 * unit)
}

/// The most memory that this process has held at once, in bytes, mapped files counted.
#[cfg(not(unix))]
pub fn peak_memory() -> Option<u64> {
    None
}

/// Watches what others take of the processors while something is timed.
pub struct Watch {
    system: System,
    own_millis: u64,
    steal: Option<(u64, u64)>,
    started: Instant,
}

/// What others took, as shares of all processors' time.
#[derive(Debug, Clone, Copy)]
pub struct OtherLoad {
    /// Other processes.
    pub processes: f64,
    /// The host of this virtual machine, where it tells.
    pub steal: Option<f64>,
    /// Runnable processes, averaged over the last minute.
    pub load_average: f64,
}

impl OtherLoad {
    /// Whether it was enough to disturb a measurement.
    pub fn disturbs(&self) -> bool {
        self.processes > 0.03 || self.steal.is_some_and(|steal| steal > 0.01)
    }
}

impl Watch {
    /// Starts watching.
    pub fn start() -> Watch {
        let mut system = System::new();
        system.refresh_cpu_usage();
        Watch {
            own_millis: own_millis(&mut system),
            system,
            steal: steal(),
            started: Instant::now(),
        }
    }

    /// What others took since the start; `None` if the time was too short to tell.
    pub fn stop(mut self) -> Option<OtherLoad> {
        let elapsed = self.started.elapsed();
        if elapsed < sysinfo::MINIMUM_CPU_UPDATE_INTERVAL {
            return None;
        }
        self.system.refresh_cpu_usage();
        let busy = f64::from(self.system.global_cpu_usage()) / 100.0;
        let own = own_millis(&mut self.system).saturating_sub(self.own_millis) as f64 / 1000.0;
        let processors = self.system.cpus().len().max(1) as f64;
        let own = own / elapsed.as_secs_f64() / processors;
        let steal = self
            .steal
            .zip(steal())
            .map(|((stolen, all), (stolen_now, all_now))| {
                stolen_now.saturating_sub(stolen) as f64 / all_now.saturating_sub(all).max(1) as f64
            });
        Some(OtherLoad {
            processes: (busy - own - steal.unwrap_or(0.0)).max(0.0),
            steal,
            load_average: System::load_average().one,
        })
    }
}

/// Processor time of this process, in milliseconds.
fn own_millis(system: &mut System) -> u64 {
    let Ok(pid) = sysinfo::get_current_pid() else {
        return 0;
    };
    let what = ProcessRefreshKind::nothing().with_cpu();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
    system
        .process(pid)
        .map_or(0, |process| process.accumulated_cpu_time())
}

/// Time stolen by the host and time in all, of all processors, where the kernel counts them.
fn steal() -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|t| t.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal, then guests, which user holds already.
    Some((*ticks.get(7)?, ticks[..8].iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn gpus_are_named_by_their_driver() {
        let root = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(nvidia_names_under(&root.path().join("none")), [""; 0]);
        for (bus, facts) in [
            ("0000:41:00.0", "Model: \t\t NVIDIA B\nIRQ:   \t\t 50\n"),
            ("0000:01:00.0", "IRQ: 1\nModel: \t\t NVIDIA A\n"),
            ("0000:02:00.0", "nothing that is known\n"),
        ] {
            let gpu = root.path().join(bus);
            std::fs::create_dir(&gpu).expect("a folder");
            std::fs::write(gpu.join("information"), facts).expect("a file");
        }
        assert_eq!(nvidia_names_under(root.path()), ["NVIDIA A", "NVIDIA B"]);
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |file: &str, text: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        };
        let left = |groups: &str| groups_under(root.path(), groups);
        assert_eq!(left("0::/a/b\n"), None);
        assert_eq!(left("nonsense\n1:memory\n"), None);
        // Version 2: without a limit, then with one above, then with a tighter one.
        write("a/b/memory.max", "max\n");
        assert_eq!(left("0::/a/b\n"), None);
        write("a/memory.max", "1000000\n");
        write("a/memory.stat", "file 7\nanon 300000\nanon_thp 5\n");
        assert_eq!(left("0::/a/b\n"), Some(700_000));
        assert_eq!(left("0::/a\n"), Some(700_000));
        assert_eq!(left("0::/other\n"), None);
        write("a/b/memory.max", "500000\n");
        assert_eq!(left("0::/a/b\n"), Some(500_000));
        // More in use than allowed.
        write("a/b/memory.stat", "anon 600000\n");
        assert_eq!(left("0::/a/b\n"), Some(0));
        // Version 1, in a container: the path is the host's, the mount's root its own group.
        write("memory/memory.limit_in_bytes", "2000\n");
        write("memory/memory.stat", "rss 1\ntotal_rss 500\n");
        assert_eq!(left("4:cpu,memory:/host/x\n2:cpu:/y\n0::/z\n"), Some(1500));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_held_is_told_by_kind() {
        let before = resident().expect("Linux tells");
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = resident().expect("Linux tells");
        let more = after.anonymous - before.anonymous;
        assert!((48 << 20..96 << 20).contains(&more), "{more} bytes");
        assert!(after.files > 1 << 20 && held.len() == 64 << 20);
        assert!(available_memory().is_some_and(|free| free > 1 << 20));
    }
}
