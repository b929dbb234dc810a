//! Shared folders in a stock Debian guest on the software CPU: suites and programs that rely on a file system being right.
//!
//! What runs here is fixed and takes some minutes. `MINIVMM_FSX_SEEDS=10 MINIVMM_FSX_OPERATIONS=100000 cargo test --release --test fs fsx` is the
//! long run of fsx; `MINIVMM_PGBENCH_SECONDS=60` makes PostgreSQL work longer.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeSet;
use std::fs;

use support::share::{Guest, Host, is_root};

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

fn pjdfstest_passes(host: Host) {
    let Some(mut guest) = Guest::boot(host, "", &["--cpus", "2"]) else { return };
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
    pjdfstest_passes(Host::Same);
}

#[test]
fn pjdfstest_passes_with_an_ordinary_users_server() {
    pjdfstest_passes(Host::Ordinary);
}

#[test]
fn fsx_finds_nothing() {
    let Some(mut guest) = Guest::boot(Host::Same, "", &["--cpus", "2"]) else { return };
    let operations = number("MINIVMM_FSX_OPERATIONS", 2000);
    for seed in 1..=number("MINIVMM_FSX_SEEDS", 3) {
        let output = guest.run(&format!("cd /share && fsx -N {operations} -S {seed} fsx-{seed} | tail -n 1"));
        assert!(output.contains("A-OK"), "seed {seed}: {output}");
    }
    guest.end();
}

#[test]
fn fsx_finds_nothing_without_caches() {
    let Some(mut guest) = Guest::boot(Host::Ordinary, ",cache=never", &["--cpus", "2"]) else { return };
    let operations = number("MINIVMM_FSX_OPERATIONS", 2000);
    let output = guest.run(&format!("cd /share && fsx -N {operations} -S 11 fsx | tail -n 1"));
    assert!(output.contains("A-OK"), "{output}");
    guest.end();
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
        guest.run(&format!(
            "{postgres} set -e; sleep 1; pg -l /tmp/log start 2>&1 | grep -v 'another server might'; {consistent}"
        )),
        "t\n"
    );
    // The same, but the whole machine goes.
    guest.run(&format!(
        "{postgres} (as pgbench -h /tmp -n -c 2 -T 600 postgres >/tmp/pgbench 2>&1 &); sleep {}",
        seconds / 2 + 1
    ));
    guest.cut_power();
    let mut guest = boot().unwrap();
    assert_eq!(guest.run(&format!("{postgres} set -e; pg -l /tmp/log start 2>&1 | grep -v 'another server might'; {consistent}; pg -m fast stop")), "t\n");
    guest.end();
}
