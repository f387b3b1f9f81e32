//! How much memory this process may use: what the machine has, or what its cgroup allows.

use std::fs;
use std::path::{Path, PathBuf};

/// Of the memory, the buffers of all workers take at most this share when nobody says otherwise:
/// so many parts of a hundred.
const BUFFERS_PERCENT: u64 = 25;
/// What a cgroup of version 1 says when it has no limit is about this much, or more.
const NO_LIMIT: u64 = 1 << 60;

/// Memory in bytes, and whose limit that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Bytes.
    pub bytes: u64,
    /// `machine` or `cgroup`.
    pub of: &'static str,
}

impl Memory {
    /// What this process may use; `None` where the kernel does not tell.
    pub fn find() -> Option<Memory> {
        Memory::find_in(Path::new("/"))
    }

    fn find_in(root: &Path) -> Option<Memory> {
        let machine = fs::read_to_string(root.join("proc/meminfo")).ok();
        let machine =
            machine.as_deref().and_then(total).map(|bytes| Memory { bytes, of: "machine" });
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let allowed = groups.lines().filter_map(|line| least(&root.join("sys/fs/cgroup"), line));
        let group = allowed.min().map(|bytes| Memory { bytes, of: "cgroup" });
        machine.into_iter().chain(group).min_by_key(|memory| memory.bytes)
    }

    /// The share of the buffers.
    pub fn for_buffers(self) -> u64 {
        self.bytes / 100 * BUFFERS_PERCENT
    }
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least limit of a cgroup and those above it, by a line of /proc/self/cgroup (cgroups(7)).
/// Inside a container its own group is the root, or is not to be seen under its name.
fn least(groups: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (root, file) = match controllers {
        "" => (groups.to_owned(), "memory.max"),
        _ if controllers.split(',').any(|controller| controller == "memory") => {
            (groups.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let own: PathBuf = path.split('/').filter(|part| !matches!(*part, "" | "..")).collect();
    let above = own.ancestors().map(|group| root.join(group).join(file));
    let limits = above.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    limits.filter(|bytes| *bytes < NO_LIMIT).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 8 GiB with these files beside.
    fn machine(name: &str, files: &[(&str, &str)]) -> Option<Memory> {
        let name = format!("llmproxy-memory-{}-{name}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&root);
        let meminfo = ("proc/meminfo", "MemTotal:        8388608 kB\nMemFree:  1 kB\n");
        for (path, text) in files.iter().chain([&meminfo]) {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = Memory::find_in(&root);
        let _ = fs::remove_dir_all(&root);
        found
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_least_limit_counts() {
        let of = |of, bytes| Some(Memory { bytes, of });
        let v2 = ("proc/self/cgroup", "0::/user/app\n");
        assert_eq!(machine("bare", &[]), of("machine", 8 * GIB));
        let unlimited = ("sys/fs/cgroup/user/app/memory.max", "max\n");
        assert_eq!(machine("unlimited", &[v2, unlimited]), of("machine", 8 * GIB));
        let own = ("sys/fs/cgroup/user/app/memory.max", "2147483648\n");
        assert_eq!(machine("own", &[v2, own]), of("cgroup", 2 * GIB));
        let above = ("sys/fs/cgroup/user/memory.max", "1073741824\n");
        assert_eq!(machine("above", &[v2, own, above]), of("cgroup", GIB));
        let large = ("sys/fs/cgroup/user/app/memory.max", "99999999999\n");
        assert_eq!(machine("large", &[v2, large]), of("machine", 8 * GIB));
        // A container sees its own group as the root, and may be told a path outside.
        let inside = ("proc/self/cgroup", "0::/../../other\n");
        let root = ("sys/fs/cgroup/memory.max", "536870912\n");
        assert_eq!(machine("container", &[inside, root]), of("cgroup", GIB / 2));
        let v1 = ("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/1\n0::/\n");
        let limit = ("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "3221225472\n");
        let top = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(machine("v1", &[v1, limit, top]), of("cgroup", 3 * GIB));
        assert_eq!(machine("v1 unlimited", &[v1, top]), of("machine", 8 * GIB));
        assert_eq!(of("cgroup", 2 * GIB).unwrap().for_buffers() >> 20, 511);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(Memory::find().unwrap().bytes > 64 << 20);
    }
}
