//! The corrector on real directories, with an agent that is played from here.

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use minivmm_devices::virtio::fs::file_system::{Creation, FileSystem, OpenFlags};
use minivmm_firmware::agent::protocol::{COMMAND_BYTES, Command, Kind, MAGIC};
use tempfile::TempDir;

use super::*;
use crate::host::fs::{Budget, Ownership};

const PID: u32 = 42;
/// What does not come within this time does not come.
const PATIENCE: Duration = Duration::from_secs(20);

struct Guest {
    share: Arc<Share>,
    watch: Arc<ShareWatch>,
    agent: std::os::unix::net::UnixStream,
    directory: TempDir,
    _corrector: Corrector,
}

type Told = (Kind, u64, String);

impl Guest {
    /// A share that is corrected.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let share = Arc::new(Share::open(directory.path(), Ownership::Host, &Budget::of_process()).unwrap());
        let process = Arc::<AgentProcess>::default();
        let watch = Arc::new(ShareWatch::new(share.clone(), "tag".to_owned(), process.clone()));
        let door = AgentDoor::default();
        let corrector = Corrector::start(vec![watch.clone()], process, door.clone()).unwrap();
        let agent = door.enter().unwrap();
        agent.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Self { share, watch, agent, directory, _corrector: corrector };
        guest.agent.write_all(&[MAGIC.to_le_bytes(), PID.to_le_bytes()].concat()).unwrap();
        assert_eq!(guest.told(), (Kind::Mount, 0, "tag".to_owned()));
        assert_eq!(guest.told(), (Kind::Reset, 1, String::new()));
        // Answering the reset makes it live; that has happened when its answer was read.
        while !guest.watch.watch(NodeId::ROOT) {
            std::thread::yield_now();
        }
        guest
    }

    /// The next command: what, of which node, and the names. It is answered.
    fn told(&mut self) -> Told {
        self.told_and_answers(0)
    }

    /// As [`Self::told`]; what was tried in the guest ended with `error`.
    fn told_and_answers(&mut self, error: u32) -> Told {
        let mut bytes = [0; COMMAND_BYTES];
        self.agent.read_exact(&mut bytes).unwrap();
        let command = Command::from_bytes(&bytes).unwrap();
        let mut name = |len: u16| {
            let mut name = vec![0; len.into()];
            self.agent.read_exact(&mut name).unwrap();
            String::from_utf8(name).unwrap()
        };
        let (name, other) = (name(command.name_len), name(command.other_name_len));
        self.agent.write_all(&[command.sequence.to_le_bytes(), error.to_le_bytes()].concat()).unwrap();
        let names = if other.is_empty() { name } else { format!("{name} {other}") };
        (command.kind, command.node, names)
    }

    /// The guest looks `name` up in the share.
    fn look_up(&self, name: &CStr) -> NodeId {
        assert!(self.watch.watch(NodeId::ROOT));
        let node = self.share.lookup(NodeId::ROOT, Name::new(name).unwrap()).unwrap().node;
        self.watch.learned(NodeId::ROOT, node);
        node
    }

    /// A file that the host has made and the guest has looked up.
    fn known_file(&mut self, name: &CStr) -> NodeId {
        fs::write(self.path(name.to_str().unwrap()), "").unwrap();
        self.told();
        self.told();
        self.look_up(name)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// The host does something that is told after everything else.
    fn end(&mut self) -> Vec<Told> {
        fs::write(self.path("end"), "").unwrap();
        let mut all = Vec::new();
        loop {
            let told = self.told();
            if told.2 == "end" {
                return all;
            }
            all.push(told);
        }
    }
}

#[test]
fn change_of_a_known_file_is_told() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "1").unwrap();
    assert_eq!(guest.told(), (Kind::Created, 1, "file".to_owned()));
    assert_eq!(guest.told().0, Kind::Look);
    let node = guest.look_up(c"file");
    fs::write(guest.path("file"), "2").unwrap();
    assert_eq!(guest.told(), (Kind::Modified, node.0, String::new()));
    assert!(guest.watch.is_watched(node) && guest.watch.is_agent(PID) && !guest.watch.is_agent(PID + 1));
}

#[test]
fn rename_of_a_known_file_is_one_move() {
    let mut guest = Guest::new();
    guest.known_file(c"old");
    fs::rename(guest.path("old"), guest.path("new")).unwrap();
    assert_eq!(guest.told(), (Kind::Moved, 1, "old new".to_owned()));
}

#[test]
fn rename_that_the_guest_half_knows_is_told_by_its_names() {
    const ENOENT: u32 = 2;
    let mut guest = Guest::new();
    guest.known_file(c"old");
    fs::rename(guest.path("old"), guest.path("new")).unwrap();
    assert_eq!(guest.told_and_answers(ENOENT), (Kind::Moved, 1, "old new".to_owned()));
    assert_eq!(guest.told().0, Kind::Look);
    assert_eq!(guest.told(), (Kind::LookUp, 1, "old".to_owned()));
    assert_eq!(guest.told_and_answers(ENOENT), (Kind::Created, 1, "new".to_owned()));
    assert_eq!(guest.told().0, Kind::Look);
    assert_eq!(guest.told(), (Kind::LookUp, 1, "new".to_owned()));
}

#[test]
fn removal_is_told_and_the_agent_finds_what_it_removes() {
    let mut guest = Guest::new();
    fs::create_dir(guest.path("gone")).unwrap();
    guest.told();
    guest.told();
    fs::remove_dir(guest.path("gone")).unwrap();
    let mut bytes = [0; COMMAND_BYTES + 4];
    guest.agent.read_exact(&mut bytes).unwrap();
    let name = Name::new(c"gone").unwrap();
    assert_eq!(guest.watch.pretence(NodeId::ROOT, name), Some(Pretence::Present { is_directory: true }));
}

#[test]
fn what_the_guest_does_is_no_news() {
    let mut guest = Guest::new();
    let name = Name::new(c"own").unwrap();
    guest.watch.changing_name(NodeId::ROOT, name);
    let flags = OpenFlags { access: minivmm_devices::virtio::fs::file_system::Access::Write, ..OpenFlags::default() };
    let creation = Creation { mode: 0o644, caller: Default::default(), umask: 0 };
    let (entry, handle) = guest.share.create(NodeId::ROOT, name, flags, &creation).unwrap();
    guest.watch.learned(NodeId::ROOT, entry.node);
    guest.watch.changed_name(NodeId::ROOT, name, true);
    fs::write(guest.path("own"), "as if by the guest").unwrap();
    guest.watch.changed_content(entry.node);
    guest.share.release(entry.node, handle).unwrap();
    assert_eq!(guest.end(), []);
    guest.watch.changing_name(NodeId::ROOT, name);
    guest.share.unlink(NodeId::ROOT, name).unwrap();
    guest.watch.changed_name(NodeId::ROOT, name, true);
    fs::remove_file(guest.path("end")).unwrap();
    // The directory was looked at for the first "end"; nothing is said of "own".
    assert!(guest.end().iter().all(|(_, _, name)| name != "own"));
}

#[test]
fn what_the_host_does_after_the_guest_is_news() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mut guest = Guest::new();
    let node = guest.known_file(c"file");
    guest.watch.changed_content(node);
    let own = wall_clock();
    // The clock of the host's files ticks some hundred times a second.
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let changed = || {
        fs::write(elsewhere.path(), "tick").unwrap();
        let metadata = fs::metadata(elsewhere.path()).unwrap();
        Time { secs: metadata.ctime(), nanos: u32::try_from(metadata.ctime_nsec()).unwrap() }
    };
    while changed() <= own {}
    fs::set_permissions(guest.path("file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(guest.told(), (Kind::Attributes, node.0, String::new()));
}

#[test]
fn name_that_the_guest_is_changing_waits() {
    let mut guest = Guest::new();
    let name = Name::new(c"slow").unwrap();
    guest.watch.changing_name(NodeId::ROOT, name);
    // The host's part of it is done, ours is not: the guest does not know the node yet.
    fs::write(guest.path("slow"), "").unwrap();
    fs::write(guest.path("other"), "").unwrap();
    // Heard: and told if it were not for the first.
    while guest.watch.counters.reports.load(Ordering::Relaxed) < 4 {
        std::thread::yield_now();
    }
    guest.look_up(c"slow");
    guest.watch.changed_name(NodeId::ROOT, name, true);
    assert_eq!(guest.told(), (Kind::Created, 1, "other".to_owned()));
}

#[test]
fn share_without_an_agent_is_not_watched() {
    let guest = Guest::new();
    guest.agent.shutdown(std::net::Shutdown::Both).unwrap();
    while guest.watch.watch(NodeId::ROOT) {
        std::thread::yield_now();
    }
    assert!(!guest.watch.is_watched(NodeId::ROOT) && !guest.watch.is_agent(PID));
}

#[test]
fn directory_that_the_guest_forgot_is_not_watched() {
    let guest = Guest::new();
    fs::create_dir(guest.path("d")).unwrap();
    let node = guest.look_up(c"d");
    assert!(guest.watch.watch(node) && guest.watch.is_watched(node));
    assert!(guest.share.forget(node, 1));
    guest.watch.forgotten(node);
    assert!(!guest.watch.known().watches.contains_key(&node));
}

#[test]
fn agent_that_says_nonsense_is_closed() {
    let mut guest = Guest::new();
    guest.agent.write_all(&[7; 8]).unwrap();
    while guest.watch.watch(NodeId::ROOT) {
        std::thread::yield_now();
    }
}
