//! Control groups and their weight: what share of a processor a whole guest gets beside other groups.
//!
//! A thread's nice value counts among the threads of its group only. Where a guest lives in a group of its own, as in a
//! container or a systemd unit, nothing that is done to its threads moves it beside the others: the group's `cpu.weight`
//! does. A group is weighed only when the host does not live in it or below it, and never the root.
//!
//! The danger: paths are looked up again for each change, and a group may be gone by then, which is an error like any
//! other. Source: cgroups(7), the kernel's admin-guide/cgroup-v2, proc_pid_mountinfo(5).

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Least and greatest `cpu.weight`.
const WEIGHT_MIN: u64 = 1;
const WEIGHT_MAX: u64 = 10_000;
const FILE: &str = "cpu.weight";

/// A control group that may be weighed: its folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(pub PathBuf);

impl Group {
    /// Its weight now.
    ///
    /// # Errors
    ///
    /// It is gone, or cannot be read.
    pub fn weight(&self) -> io::Result<u32> {
        let text = fs::read_to_string(self.0.join(FILE))?;
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE} is {text:?}")))
    }

    /// Gives it another weight, 1 to 10000.
    ///
    /// # Errors
    ///
    /// It is gone, or not ours to weigh.
    pub fn set_weight(&self, weight: u32) -> io::Result<()> {
        // Never creates the file: in a folder that is no control group there is nothing to weigh.
        let mut file = fs::OpenOptions::new().write(true).open(self.0.join(FILE))?;
        io::Write::write_all(&mut file, weight.to_string().as_bytes())
    }
}

/// Weight of a group whose most urgent thread is `steps` nice values more urgent than it was before: a step of nice is
/// worth a quarter, so a group with one thread gets what that thread would get in the group of the others.
#[must_use]
pub fn weigh(before: u32, steps: i32) -> u32 {
    let mut weight = u64::from(before) << 16;
    for _ in 0..steps.unsigned_abs().min(40) {
        weight = if steps > 0 { weight * 5 / 4 } else { weight * 4 / 5 };
    }
    (((weight + (1 << 15)) >> 16).clamp(WEIGHT_MIN, WEIGHT_MAX)) as u32
}

/// The control groups of this machine, as this process sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Where processes' groups are read.
    proc: PathBuf,
    /// Where groups are folders.
    mount: PathBuf,
    /// The group that is mounted there.
    root: PathBuf,
    /// The group this process lives in.
    own: PathBuf,
}

impl Groups {
    /// Finds them. `None`: version 2 is not mounted, or without the cpu controller.
    #[must_use]
    pub fn find(proc: &Path) -> Option<Self> {
        let mounts = fs::read_to_string(proc.join("self/mountinfo")).ok()?;
        let (root, mount) = mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mut fields = place.split(' ').skip(3);
            let (root, mount) = (fields.next()?, fields.next()?);
            // Escaped names, which nobody has, are not understood.
            (kind.starts_with("cgroup2 ") && !line.contains('\\')).then(|| (PathBuf::from(root), PathBuf::from(mount)))
        })?;
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).ok()?;
        let own = path_of(proc, "self")?;
        controllers.split_whitespace().any(|name| name == "cpu").then(|| Self {
            proc: proc.to_owned(),
            mount,
            root,
            own,
        })
    }

    /// The group of a process, if it may be weighed.
    #[must_use]
    pub fn of(&self, pid: u32) -> Option<Group> {
        let path = path_of(&self.proc, &pid.to_string())?;
        let below = path.strip_prefix(&self.root).ok()?;
        if self.own.starts_with(&path) || below.as_os_str().is_empty() {
            return None;
        }
        let group = Group(self.mount.join(below));
        group.weight().is_ok().then_some(group)
    }
}

/// The group of a process in version 2. `None` as well when it lies outside of what this process may see.
fn path_of(proc: &Path, process: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(proc.join(process).join("cgroup")).ok()?;
    let path = PathBuf::from(text.lines().find_map(|line| line.strip_prefix("0::"))?);
    path.components().all(|part| part != Component::ParentDir).then_some(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]
mod tests {
    use super::*;

    /// A machine made of files; gone at the end.
    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str, controllers: &str) -> Self {
            let machine = Self(std::env::temp_dir().join(format!("vbnet-groups-{name}-{}", std::process::id())));
            let mount = machine.0.join("cgroup");
            machine.write("cgroup/cgroup.controllers", controllers);
            let mounts = format!(
                "30 1 0:26 / /proc rw - proc proc rw\n31 1 0:27 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
                mount.display()
            );
            machine.write("proc/self/mountinfo", &mounts);
            machine.live("self", "/system/host");
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn live(&self, process: &str, group: &str) {
            self.write(&format!("proc/{process}/cgroup"), &format!("4:memory:/else\n0::{group}\n"));
        }

        fn weight(&self, group: &str, weight: &str) -> Group {
            self.write(&format!("cgroup/{group}/cpu.weight"), weight);
            Group(self.0.join("cgroup").join(group))
        }

        fn groups(&self) -> Option<Groups> {
            Groups::find(&self.0.join("proc"))
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn group_of_a_guest_is_found_and_weighed() {
        let machine = Machine::new("found", "memory cpu pids\n");
        machine.live("7", "/guests/web");
        let expected = machine.weight("guests/web", "100\n");

        let group = machine.groups().unwrap().of(7).unwrap();
        group.set_weight(250).unwrap();

        assert_eq!((expected, 250), (group.clone(), group.weight().unwrap()));
    }

    #[test]
    fn without_a_cpu_controller_there_is_nothing_to_weigh() {
        assert_eq!(None, Machine::new("none", "memory pids cpuset\n").groups());
    }

    #[test]
    fn group_that_holds_the_host_is_left_alone() {
        //! Its own, one above it, and the root; a neighbour whose name begins alike is another one.
        let machine = Machine::new("host", "cpu");
        for (pid, path) in [("1", "/"), ("2", "/system"), ("3", "/system/host"), ("4", "/system/hostile")] {
            machine.live(pid, path);
            machine.weight(path.trim_start_matches('/'), "100");
        }
        let groups = machine.groups().unwrap();

        assert_eq!([None, None, None], [1, 2, 3].map(|pid| groups.of(pid)));
        assert!(groups.of(4).is_some());
    }

    #[test]
    fn group_without_a_weight_or_out_of_sight_is_none_of_ours() {
        let machine = Machine::new("strange", "cpu");
        machine.live("5", "/guests/bare");
        machine.live("6", "/../outside");
        let words = machine.weight("guests/words", "many");
        machine.live("7", "/guests/words");
        let groups = machine.groups().unwrap();

        assert_eq!([None, None, None, None], [5, 6, 7, 8].map(|pid| groups.of(pid)));
        assert!(Group(machine.0.join("cgroup/guests/bare")).set_weight(1).is_err(), "made a file");
        assert!(words.weight().is_err());
    }

    #[test]
    fn weight_follows_nice_within_the_kernels_bounds() {
        assert_eq!([100, 125, 80, 931, 1, 10_000], [0, 1, -1, 10, -40, 40].map(|steps| weigh(100, steps)));
        assert_eq!((10_000, 1), (weigh(10_000, 20), weigh(1, -20)));
    }
}
