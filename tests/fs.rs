//! Shared folders in a stock Debian guest on the software CPU: suites and programs that rely on a file system being right.
//!
//! What runs here is fixed and takes some minutes. `MINIVMM_FSX_SEEDS=10 MINIVMM_FSX_OPERATIONS=100000 cargo test --release --test fs fsx` is the
//! long run of fsx; `MINIVMM_PGBENCH_SECONDS=60` makes PostgreSQL work longer.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use std::{fs, io};

use support::share::{Guest, Host, NOBODY, is_root};

mod support;

/// Cases of pjdfstest that may fail, and why it is not the share's fault.
const EXCUSED: [(&str, &str); 2] = [
    ("link::link_count_max", "musl's pathconf(3), which the suite is linked with, says 8 for any file system"),
    (
        "open::etxtbsy",
        "Linux asks a FUSE server to truncate (O_TRUNC in OPEN) before it finds that the file is being executed; the program, its text gone, \
         may have died by then (fs/namei.c: vfs_open before handle_truncate)",
    ),
];

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

fn probes_pass(host: Host, share_options: &str, excused: &[&str]) {
    let Some(mut guest) = Guest::boot(host, share_options, &["--cpus", "2"]) else { return };
    let (_, output) = guest.try_run("probe /share");
    assert!(output.ends_with("probe done\n"), "{output}");
    let failed: Vec<&str> = output.lines().filter(|line| line.starts_with("FAIL")).collect();
    let failed: Vec<_> = failed.iter().filter(|line| !excused.iter().any(|name| line.contains(name))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    guest.end();
}

#[test]
fn probes_pass_with_a_server_of_the_same_user() {
    probes_pass(Host::Same, "", &[]);
}

#[test]
fn probes_pass_with_an_ordinary_users_server() {
    probes_pass(Host::Ordinary, "", &[]);
}

#[test]
fn probes_pass_without_caches() {
    probes_pass(Host::Same, ",cache=never", &[]);
}

#[test]
fn probes_pass_with_everything_cached() {
    probes_pass(Host::Same, ",cache=always", &[]);
}

fn pjdfstest_passes(host: Host, share_options: &str) {
    let Some(mut guest) = Guest::boot(host, share_options, &["--cpus", "2"]) else { return };
    // Not of 31 bytes, nor of 127 more: the suite's arithmetic of longest paths fails there.
    guest.run("mkdir -m 777 /share/pjdfs");
    let (_, output) = guest.try_run("cd /share; NO_COLOR=1 pjdfstest -c /etc/pjdfstest.toml -p /share/pjdfs");
    let summary = output.lines().find(|line| line.starts_with("Summary:")).unwrap_or_else(|| panic!("{output}"));
    let failed = output.lines().filter(|line| line.trim_end().ends_with("FAILED"));
    let failed: BTreeSet<&str> = failed.filter_map(|line| line.split_whitespace().next()).collect();
    let unexpected: Vec<_> = failed.iter().filter(|name| EXCUSED.iter().all(|(excused, _)| excused != *name)).collect();
    eprintln!("{host:?}: {summary}; excused: {failed:?}");
    assert!(unexpected.is_empty(), "{unexpected:?} {summary}\n{output}");
    let word = |what: &str| -> u32 {
        let words: Vec<&str> = summary.split_whitespace().collect();
        let at = words.iter().position(|word| word.trim_end_matches(',') == what).unwrap();
        words[at - 1].parse().unwrap()
    };
    // The suite did run: 13 are skipped that would remount the share read-only.
    assert!(word("passed") >= 382 && word("skipped") <= 13, "{summary}");
    guest.end();
}

#[test]
fn pjdfstest_passes_with_a_server_of_the_same_user() {
    if !is_root() {
        eprintln!("as an ordinary user: this is the same as the next test");
    }
    pjdfstest_passes(Host::Same, "");
}

#[test]
fn pjdfstest_passes_with_an_ordinary_users_server() {
    pjdfstest_passes(Host::Ordinary, "");
}

#[test]
fn pjdfstest_passes_where_the_guest_opens_nothing() {
    pjdfstest_passes(Host::Ordinary, ",cache=always");
}

#[test]
fn fsx_finds_nothing() {
    let Some(mut guest) = Guest::boot(Host::Same, "", &["--cpus", "2"]) else { return };
    let operations = number("MINIVMM_FSX_OPERATIONS", 2000);
    let seeds: Vec<u64> = (1..=number("MINIVMM_FSX_SEEDS", 4)).collect();
    // As many at once as there are vCPUs.
    for seeds in seeds.chunks(2) {
        let one = |seed| format!("fsx -N {operations} -S {seed} fsx-{seed} | tail -n 1 & ");
        let output = guest.run(&format!("cd /share; {} wait", seeds.iter().map(one).collect::<String>()));
        assert_eq!(output.matches("A-OK").count(), seeds.len(), "seeds {seeds:?}: {output}");
        eprintln!("seeds {seeds:?}: {operations} operations each");
    }
    guest.end();
}

fn fsx_finds_nothing_with(share_options: &str) {
    let Some(mut guest) = Guest::boot(Host::Ordinary, share_options, &["--cpus", "2"]) else { return };
    let operations = number("MINIVMM_FSX_OPERATIONS", 2000);
    let output = guest.run(&format!("cd /share && fsx -N {operations} -S 11 fsx | tail -n 1"));
    assert!(output.contains("A-OK"), "{output}");
    guest.end();
}

#[test]
fn fsx_finds_nothing_without_caches() {
    fsx_finds_nothing_with(",cache=never");
}

#[test]
fn fsx_finds_nothing_where_the_guest_opens_nothing() {
    fsx_finds_nothing_with(",cache=always");
}

#[test]
fn fio_reads_what_it_wrote() {
    let Some(mut guest) = Guest::boot(Host::Ordinary, "", &["--cpus", "2"]) else { return };
    for job in [
        "--rw=randwrite --bs=4k --ioengine=psync --fsync=32",
        "--rw=randrw --bs=512-64k --ioengine=libaio --iodepth=8 --direct=1 --blockalign=512",
        "--rw=write --bs=1m --ioengine=mmap",
    ] {
        let options = "--size=8m --numjobs=2 --verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting --directory=/share --output-format=terse";
        guest.run(&format!("fio --name=verified {job} {options} >/tmp/fio 2>&1 || {{ cat /tmp/fio; false; }}"));
    }
    guest.end();
}

#[test]
fn git_works_in_the_share_on_both_sides() {
    let Some(mut guest) = Guest::boot(Host::Ordinary, "", &["--cpus", "2"]) else { return };
    guest.run(
        "export GIT_CONFIG_GLOBAL=/tmp/gitconfig; git config --global user.name t; git config --global user.email t@t
         git config --global init.defaultBranch main; git config --global safe.directory '*'
         set -e; cd /share; git init -q origin; cd origin
         for d in $(seq 20); do mkdir d$d; for f in $(seq 15); do echo $d $f $RANDOM >d$d/f$f; done; done
         git add .; git commit -qm one; git mv d1/f1 d1/moved; git commit -qm two; git checkout -qb side; rm -r d2; git commit -qam three
         git checkout -q main; git merge -q side -m four; git gc -q; cd ..; git clone -q origin clone; cd clone
         test $(git log --oneline | wc -l) -ge 3; test -z \"$(git status --porcelain)\"; git fsck --strict",
    );
    // Nothing was left half-written, as the host sees it.
    let clone = guest.share.join("clone");
    match std::process::Command::new("git")
        .args(["-c", "safe.directory=*", "-C"])
        .arg(clone)
        .args(["fsck", "--strict"])
        .output()
    {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("skipped: git on the host: {error}"),
    }
    guest.end();
}

#[test]
fn sqlite_keeps_its_database_in_wal_mode() {
    let Some(mut guest) = Guest::boot(Host::Ordinary, "", &["--cpus", "2"]) else { return };
    guest.run("cd /share && sqlite3 a.db 'pragma journal_mode=wal; create table t(writer, n);' >/dev/null");
    // Three writers at a time, with the locks and the shared memory of WAL mode.
    guest.run(
        r#"cd /share; for w in 1 2 3; do
             (echo ".timeout 60000"; for i in $(seq 60); do echo "insert into t values($w, $i);"; done) | sqlite3 a.db &
           done; wait"#,
    );
    let script = "cd /share && sqlite3 a.db 'select count(*), count(distinct writer) from t; pragma integrity_check;'";
    assert_eq!(guest.run(script), "180|3\nok\n");
    guest.end();
}

#[test]
fn postgresql_survives_a_kill_and_a_power_cut() {
    let share = tempfile::tempdir().unwrap();
    let seconds = number("MINIVMM_PGBENCH_SECONDS", 5);
    let boot = || Guest::boot_with(Some(share.path()), Host::Ordinary, "", &["--cpus", "2"]);
    let Some(mut guest) = boot() else { return };
    fs::set_permissions(share.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    // In the guest, as the user postgres: initdb insists on an own directory.
    let postgres = "as() { setpriv --reuid=100 --regid=100 --clear-groups env HOME=/tmp LC_ALL=C \"$@\"; }
        pg() { as pg_ctl -D /share/pg -s -w -t 300 -o '-c jit=off -c unix_socket_directories=/tmp -c shared_buffers=16MB' \"$@\"; }
        sql() { as psql -h /tmp -qtAX postgres -c \"$1\"; }\n";
    guest.run(&format!(
        "{postgres} set -e; mkdir /share/pg; chown 100:100 /share/pg; chmod 700 /share/pg; as initdb -D /share/pg >/tmp/initdb 2>&1 || {{ cat /tmp/initdb; false; }}
         pg -l /tmp/log start; as pgbench -h /tmp -q -i -s 1 postgres >/tmp/pgbench 2>&1 || {{ cat /tmp/pgbench; false; }}"
    ));
    // The server and all its processes, in the middle of work.
    guest.run(&format!(
        "{postgres} set -e; (as pgbench -h /tmp -n -c 2 -T {seconds} postgres >/tmp/pgbench 2>&1 &); sleep {}
         kill -9 $(head -n 1 /share/pg/postmaster.pid) $(pgrep -f 'postgres:' 2>/dev/null) 2>/dev/null || true",
        seconds / 2 + 1
    ));
    let consistent =
        "sql \"select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
                      and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
                      and (select count(*) from pgbench_history) > 0\"";
    assert_eq!(
        guest.run(&format!("{postgres} set -e; sleep 1; pg -l /tmp/log start >/dev/null 2>&1; {consistent}")),
        "t\n"
    );
    // The same, but the whole machine goes.
    guest.run(&format!(
        "{postgres} (as pgbench -h /tmp -n -c 2 -T 600 postgres >/tmp/pgbench 2>&1 &); sleep {}",
        seconds / 2 + 1
    ));
    guest.cut_power();
    let mut guest = boot().unwrap();
    assert_eq!(
        guest.run(&format!("{postgres} set -e; pg -l /tmp/log start >/dev/null 2>&1; {consistent}; pg -m fast stop")),
        "t\n"
    );
    guest.end();
}

/// Requests per operation: a file operation, how many it may cost, and of those how many are GETXATTRs. The numbers are the best that a stock
/// kernel allows. It asks for `security.capability` before the first write to a file after it has looked at its attributes, of every
/// share that has extended attributes.
const REQUESTS: [(&str, u64, u64); 16] = [
    // LOOKUP, CREATE, GETATTR of the directory, WRITE, RELEASE
    ("create_write_close", 5, 1),
    ("stat_cold", 1, 0),
    ("stat_warm", 0, 0),
    ("stat_deep_cold", 1, 0),
    ("stat_absent_again", 0, 0),
    // LOOKUP, OPEN, READ, RELEASE
    ("open_read_close_cold", 4, 0),
    ("open_read_close_warm", 2, 0),
    // OPENDIR, READDIRPLUS of 4 KiB each, RELEASEDIR; virtiofsd needs 11
    ("list_long", 11, 0),
    ("rename", 3, 0),
    ("atomic_save", 9, 1),
    ("pwrite", 1, 0),
    ("pwrite_fsync", 2, 0),
    ("append", 2, 1),
    ("mmap_msync", 7, 0),
    ("chmod", 1, 0),
    ("unlink", 2, 0),
];

/// What of that is less where the guest sends neither OPEN nor RELEASE; GETXATTRs are as many.
const REQUESTS_WITHOUT_OPEN: [(&str, u64); 4] =
    [("create_write_close", 4), ("open_read_close_cold", 2), ("open_read_close_warm", 0), ("atomic_save", 8)];

#[test]
fn file_operations_cost_no_more_requests_than_a_stock_kernel_must_make() {
    let Some(mut guest) = Guest::boot(Host::Same, "", &["--cpus", "1"]) else { return };
    guest.wait_for_the_agent();
    file_operations_cost(guest, &REQUESTS);
}

#[test]
fn file_operations_cost_no_open_where_the_guest_trusts_its_caches() {
    let Some(guest) = Guest::boot(Host::Same, ",cache=always", &["--cpus", "1"]) else { return };
    let less = BTreeMap::from(REQUESTS_WITHOUT_OPEN);
    file_operations_cost(
        guest,
        &REQUESTS.map(|(name, most, getxattrs)| (name, less.get(name).copied().unwrap_or(most), getxattrs)),
    );
}

fn file_operations_cost(mut guest: Guest, most: &[(&str, u64, u64)]) {
    guest.send("count /share 2>&1; echo counted\n");
    let mut before: Option<(String, u64, BTreeMap<String, u64>)> = None;
    let mut measured = BTreeMap::new();
    loop {
        let line = guest.line();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["COUNT", name, operations] = words[..] else {
            assert_eq!(line, "counted\n");
            break;
        };
        let now = guest.requests();
        if let Some((name, operations, before)) = before.take().filter(|(name, ..)| name != "-") {
            // When names are forgotten is the kernel's affair, and costs nobody time.
            let made = now.iter().filter(|(opcode, _)| !opcode.contains("forget"));
            let made: BTreeMap<_, _> =
                made.map(|(opcode, count)| (opcode.clone(), count - before.get(opcode).unwrap_or(&0))).collect();
            eprintln!(
                "{name}, {operations} times: {:?}",
                made.iter().filter(|(_, count)| **count > 0).collect::<Vec<_>>()
            );
            measured.insert(name, (operations, made));
        }
        before = Some((name.to_owned(), operations.parse().unwrap(), now));
        guest.send("\n");
    }
    for (name, most, getxattrs) in most.iter().copied() {
        let (operations, made) = measured.remove(name).unwrap();
        let getxattr = made.get("getxattr").copied().unwrap_or(0);
        let others = made.values().sum::<u64>() - getxattr;
        // Once for each file, and for an append that crosses a page: fewer than one more in twenty.
        let slack = operations / 20;
        assert!(
            others <= most * operations + slack,
            "{name}: {others} requests for {operations}, at most {most} each: {made:?}"
        );
        assert!(getxattr <= getxattrs * operations + slack, "{name}: {made:?}");
    }
    assert!(measured.is_empty(), "{measured:?}");
    guest.end();
}

#[test]
fn files_that_the_guest_does_not_open_are_the_hosts_soon_and_the_guests_as_long_as_it_wants() {
    let Some(mut guest) = Guest::boot(Host::Same, ",cache=always", &["--cpus", "2"]) else { return };
    let share = guest.share.clone();
    let program = share.join("program");
    guest.run("cd /share; printf '#!/bin/sh\\nexit 0\\n' >program; chmod 755 program");
    // "Text file busy" while minivmm has it open for writing, which is two seconds at most.
    let deadline = Instant::now() + Duration::from_secs(60);
    let ran = loop {
        let ran = std::process::Command::new(&program).status();
        if !ran.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ExecutableFileBusy) {
            break ran.unwrap();
        }
        assert!(Instant::now() < deadline, "minivmm keeps it open");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(ran.success());
    // Opened again when they have lost their names: one by the guest, one by the host.
    fs::write(share.join("replaced"), "old\n").unwrap();
    fs::write(share.join("new"), "new\n").unwrap();
    guest.send("cd /share; echo text >removed; cat replaced; exec 3<>replaced 4<>removed; rm removed\n");
    assert_eq!(guest.line(), "old\n");
    fs::rename(share.join("new"), share.join("replaced")).unwrap();
    guest.send("echo 3 >/proc/sys/vm/drop_caches; sleep 3; cat <&3; cat <&4; echo more >&4\n");
    assert_eq!([guest.line(), guest.line()], ["old\n", "text\n"]);
    guest.end();
}

#[test]
fn vcpus_serve_every_share_of_an_ordinary_user() {
    let second = tempfile::tempdir().unwrap();
    if is_root() {
        std::os::unix::fs::chown(second.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // Whatever the file system is that tests have here.
    let option = format!("{}:second,serve=vcpus", second.path().display());
    let Some(mut guest) = Guest::boot(Host::Ordinary, ",serve=vcpus", &["--cpus", "2", "--share", &option]) else {
        return;
    };
    // On either vCPU, so that each serves both.
    guest.run(
        "set -e; mkdir /tmp/second; mount -t virtiofs second /tmp/second
         for cpu in 1 2; do for share in /share /tmp/second; do
             export cpu share
             taskset $cpu bash -ec 'cd $share; mkdir d$cpu; for i in $(seq 50); do echo $i >d$cpu/f$i; chmod 600 d$cpu/f$i; done'
         done; done
         for share in /share /tmp/second; do test $(cat $share/d1/* $share/d2/* | sort -n | uniq -c | grep -c '^ *2 ') = 50; done
         ln /tmp/second/d1/f1 /tmp/second/d2/linked; mv /share/d1/f1 /share/d2/moved",
    );
    for tag in ["share", "second"] {
        let counters = guest.counters_of(tag);
        let requests = counters["requests"].as_object().unwrap().iter();
        let requests: u64 = requests.filter(|(name, _)| *name != "forget").map(|(_, n)| n.as_u64().unwrap()).sum();
        let inline = counters["inline"].as_u64().unwrap();
        // A host that is slow for a moment has threads serve for a while.
        assert!(inline > requests / 2, "{tag}: {inline} of {requests}");
    }
    assert_eq!(fs::read(second.path().join("d1/f50")).unwrap(), b"50\n");
    guest.end();
}

/// A full file system, which only root can make.
struct Full(tempfile::TempDir);

impl Full {
    /// `None`, with a line, where it cannot be made.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(directory.path())
            .status();
        if is_root() && mount.is_ok_and(|status| status.success()) {
            return Some(Self(directory));
        }
        eprintln!("skipped: a small file system cannot be mounted by this user");
        None
    }

    fn unmount(&self) {
        assert!(std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status().unwrap().success());
    }
}

#[test]
fn full_file_system_is_told_and_goes_on_when_there_is_space() {
    let Some(full) = Full::mount() else { return };
    let Some(mut guest) = Guest::boot_with(Some(full.0.path()), Host::Same, "", &["--cpus", "2"]) else { return };
    let (status, output) = guest.try_run("cd /share; dd if=/dev/zero of=big bs=64k count=64");
    assert!(status != 0 && output.contains("No space left on device"), "{output}");
    let (status, output) = guest.try_run("cd /share; fallocate -l 4m more");
    assert!(status != 0 && output.contains("No space left on device"), "{output}");
    // What was written before is there, and what is written after there is space again.
    let script = "cd /share; cmp -n 65536 big /dev/zero && rm -f big more && dd if=/dev/zero of=small bs=64k count=4 2>/dev/null && stat -c %s small";
    assert_eq!(guest.run(script), "262144\n");
    guest.end();
    full.unmount();
}

#[test]
fn unmounted_share_fails_what_is_asked_of_it_and_nothing_else() {
    let Some(gone) = Full::mount() else { return };
    let Some(mut guest) = Guest::boot_with(Some(gone.0.path()), Host::Same, "", &["--cpus", "2"]) else { return };
    guest.run("echo before >/share/file; cat /share/file");
    gone.unmount();
    // The directory that was shared is still open here: it stays usable, or fails, but the guest lives.
    guest.try_run("cat /share/file; echo more >>/share/file; ls /share; stat /share");
    assert_eq!(guest.run("echo alive; echo local >/tmp/x; cat /tmp/x"), "alive\nlocal\n");
    guest.end();
}

#[test]
fn deleted_host_directory_fails_what_is_asked_of_it_and_nothing_else() {
    let share = tempfile::tempdir().unwrap();
    let Some(mut guest) = Guest::boot_with(Some(share.path()), Host::Same, "", &["--cpus", "2"]) else { return };
    guest.run("cd /share; mkdir d; echo content >d/file; exec 5<d/file; cat d/file >/dev/null");
    fs::remove_dir_all(share.path()).unwrap();
    let (status, output) = guest.try_run("sleep 2; echo new >/share/d/other");
    assert!(status != 0, "{output}");
    let (status, output) = guest.try_run("sleep 2; cat /share/d/file");
    assert!(status != 0 && (output.contains("No such file") || output.contains("Stale")), "{output}");
    let (status, output) = guest.try_run("mkdir /share/again");
    assert!(status != 0, "{output}");
    assert_eq!(guest.run("echo alive"), "alive\n");
    guest.end();
}

#[test]
fn read_only_share_cannot_be_changed() {
    let share = tempfile::tempdir().unwrap();
    fs::write(share.path().join("file"), "content").unwrap();
    let Some(mut guest) = Guest::boot_with(Some(share.path()), Host::Same, ",ro", &["--cpus", "2"]) else { return };
    for script in [
        "echo x >/share/new",
        "echo x >>/share/file",
        "rm /share/file",
        "chmod 600 /share/file",
        "mkdir /share/d",
        "mv /share/file /share/g",
    ] {
        let (status, output) = guest.try_run(script);
        assert!(status != 0 && output.contains("Read-only file system"), "{script}: {output}");
    }
    assert_eq!(guest.run("cat /share/file"), "content");
    guest.end();
}
