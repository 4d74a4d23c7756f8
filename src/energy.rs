//! The energy that this machine's processors have used, where the system tells: Linux's powercap counters
//! (RAPL of Intel and AMD), which most systems let only root read.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The counters of all processor packages.
#[derive(Debug)]
pub struct Meter {
    packages: Vec<Package>,
}

#[derive(Debug)]
struct Package {
    counter: PathBuf,
    /// Where it starts again from 0.
    range: u64,
}

/// What the counters showed.
#[derive(Debug, Clone)]
pub struct Reading(Vec<u64>);

impl Meter {
    /// The counters of this machine; `None` where there are none that this process may read.
    pub fn open() -> Option<Meter> {
        Meter::under(Path::new("/sys/class/powercap"))
    }

    fn under(root: &Path) -> Option<Meter> {
        let mut packages = Vec::new();
        for entry in fs::read_dir(root).ok()?.flatten() {
            let folder = entry.path();
            // Parts of a package (cores, memory) are counted in it, and have names such as intel-rapl:0:1.
            let is_package = fs::read_to_string(folder.join("name"))
                .is_ok_and(|name| name.starts_with("package"));
            let counter = folder.join("energy_uj");
            if is_package && number(&counter).is_some() {
                let range = number(&folder.join("max_energy_range_uj"))?;
                packages.push(Package { counter, range });
            }
        }
        (!packages.is_empty()).then_some(Meter { packages })
    }

    /// What the counters show now.
    pub fn read(&self) -> Option<Reading> {
        let counters = self.packages.iter().map(|p| number(&p.counter));
        counters.collect::<Option<_>>().map(Reading)
    }

    /// Joules used between two readings, if they are less than a counter's whole range apart.
    pub fn joules(&self, from: &Reading, to: &Reading) -> f64 {
        let used = self.packages.iter().zip(from.0.iter().zip(&to.0));
        let used = used.map(|(package, (&from, &to))| match to >= from {
            true => to - from,
            false => to + package.range.saturating_sub(from),
        });
        used.sum::<u64>() as f64 * 1e-6
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_summed_and_wrap() {
        let root = tempfile::tempdir().unwrap();
        assert!(Meter::under(root.path()).is_none());
        assert!(Meter::under(&root.path().join("none")).is_none());
        let set = |zone: &str, name: &str, counter: u64| {
            let folder = root.path().join(zone);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("name"), format!("{name}\n")).unwrap();
            fs::write(folder.join("max_energy_range_uj"), "10000000\n").unwrap();
            fs::write(folder.join("energy_uj"), format!("{counter}\n")).unwrap();
        };
        set("intel-rapl:0", "package-0", 1_000_000);
        set("intel-rapl:1", "package-1", 9_500_000);
        set("intel-rapl:0:0", "core", 77);
        let meter = Meter::under(root.path()).unwrap();
        let from = meter.read().unwrap();
        set("intel-rapl:0", "package-0", 3_500_000);
        set("intel-rapl:1", "package-1", 500_000);
        set("intel-rapl:0:0", "core", 5_000_077);
        let to = meter.read().unwrap();
        assert_eq!(meter.joules(&from, &to), 2.5 + 1.0);
    }
}
