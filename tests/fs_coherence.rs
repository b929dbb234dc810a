//! What the host changes in a shared folder, as a stock Debian guest sees it: with the agent at once, without it after a second.
//!
//! The matrix: each operation of the host, on things that the guest has cached in every way that it can. A guest that never sees a change
//! fails here; how long it takes is measured, and printed.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use support::share::{Guest, Host};

mod support;

/// What is promised with the agent, and without it; more where the host is busy, since a guest on the software CPU is then slow itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Something that the guest looks at, again and again, until it is what the host has made of it.
struct Look {
    /// What it looks at.
    script: &'static str,
    before: &'static str,
    after: &'static str,
}

/// An operation of the host, and what the guest, which had looked at all of it before, is to see then.
struct Case {
    name: &'static str,
    act: fn(&Path),
    looks: &'static [Look],
    /// What inotify says in the guest, as `watch` prints it.
    events: &'static [&'static str],
}

const fn look(script: &'static str, before: &'static str, after: &'static str) -> Look {
    Look { script, before, after }
}

/// Each case has a directory of its own, made by [`prepare`].
const CASES: [Case; 13] = [
    Case {
        name: "write",
        act: |d| fs::write(d.join("file"), "changed content").unwrap(),
        // By read and by stat, and through a descriptor that is open all the time.
        looks: &[
            look("cat file", "old", "changed content"),
            look("stat -c %s file", "3\n", "15\n"),
            look("exec 4<file; head -c 20 <&4", "old", "changed content"),
        ],
        events: &["modify file"],
    },
    Case {
        name: "write of the same length",
        act: |d| fs::write(d.join("file"), "new").unwrap(),
        looks: &[look("cat file", "old", "new")],
        events: &["modify file"],
    },
    Case {
        name: "append",
        act: |d| {
            use std::io::Write;
            fs::File::options().append(true).open(d.join("file")).unwrap().write_all(b" and more").unwrap();
        },
        looks: &[look("cat file", "old", "old and more")],
        events: &["modify file"],
    },
    Case {
        name: "truncate",
        act: |d| fs::File::options().write(true).open(d.join("file")).unwrap().set_len(1).unwrap(),
        looks: &[look("cat file", "old", "o"), look("stat -c %s file", "3\n", "1\n")],
        events: &["modify file"],
    },
    Case {
        name: "create",
        act: |d| fs::write(d.join("absent"), "here").unwrap(),
        // The guest knows that it is not there, and the listing.
        looks: &[
            look("cat absent 2>/dev/null || echo none", "none\n", "here"),
            look("ls -1", "absence\nfile\nsub\n", "absence\nabsent\nfile\nsub\n"),
        ],
        events: &["create absent"],
    },
    Case {
        name: "create a directory",
        act: |d| {
            fs::create_dir(d.join("absent")).unwrap();
            fs::write(d.join("absent/inside"), "deep").unwrap();
        },
        looks: &[
            look("cat absent/inside 2>/dev/null || echo none", "none\n", "deep"),
            look("stat -c %h .", "3\n", "4\n"),
        ],
        events: &["create absent"],
    },
    Case {
        name: "create a link",
        act: |d| symlink("file", d.join("absent")).unwrap(),
        looks: &[
            look("cat absent 2>/dev/null || echo none", "none\n", "old"),
            look("readlink absent || echo none", "none\n", "file\n"),
        ],
        events: &["create absent"],
    },
    Case {
        name: "delete",
        act: |d| fs::remove_file(d.join("file")).unwrap(),
        looks: &[
            look("cat file 2>/dev/null || echo none", "old", "none\n"),
            look("ls -1", "absence\nfile\nsub\n", "absence\nsub\n"),
        ],
        events: &["delete file"],
    },
    Case {
        name: "delete a tree",
        act: |d| fs::remove_dir_all(d.join("sub")).unwrap(),
        looks: &[
            look("cat sub/inner 2>/dev/null || echo none", "inner", "none\n"),
            look("ls -1", "absence\nfile\nsub\n", "absence\nfile\n"),
        ],
        events: &["delete sub"],
    },
    Case {
        name: "rename",
        act: |d| fs::rename(d.join("file"), d.join("absent")).unwrap(),
        looks: &[
            // The new name first: who asks for the old one finds out that it is gone, and to him the new one is made, not moved.
            look("cat absent 2>/dev/null || echo none", "none\n", "old"),
            look("cat file 2>/dev/null || echo none", "old", "none\n"),
            look("ls -1", "absence\nfile\nsub\n", "absence\nabsent\nsub\n"),
        ],
        events: &["moved_from file", "moved_to absent"],
    },
    Case {
        name: "rename of a directory",
        act: |d| fs::rename(d.join("sub"), d.join("absent")).unwrap(),
        looks: &[
            look("cat absent/inner 2>/dev/null || echo none", "none\n", "inner"),
            look("cat sub/inner 2>/dev/null || echo none", "inner", "none\n"),
        ],
        events: &["moved_from sub", "moved_to absent"],
    },
    Case {
        // What editors do.
        name: "replace",
        act: |d| {
            fs::write(d.join("file~"), "replaced").unwrap();
            fs::rename(d.join("file~"), d.join("file")).unwrap();
        },
        looks: &[look("cat file", "old", "replaced"), look("ls -1", "absence\nfile\nsub\n", "absence\nfile\nsub\n")],
        events: &["create file"],
    },
    Case {
        name: "chmod",
        act: |d| fs::set_permissions(d.join("file"), fs::Permissions::from_mode(0o640)).unwrap(),
        looks: &[look("stat -c %a file", "644\n", "640\n")],
        events: &["attrib file"],
    },
];

fn prepare(directory: &Path) {
    fs::create_dir_all(directory.join("sub")).unwrap();
    fs::write(directory.join("file"), "old").unwrap();
    fs::write(directory.join("absence"), "").unwrap();
    fs::write(directory.join("sub/inner"), "inner").unwrap();
    fs::set_permissions(directory.join("file"), fs::Permissions::from_mode(0o644)).unwrap();
}

/// Runs `case` in directory `number`; how long the last of its looks took to be right. `heard` waits until inotify has said what it should: before
/// the guest looks, since who looks before the agent has told the kernel may find out by himself, and then there is nothing to tell.
fn try_case(guest: &mut Guest, number: usize, case: &Case, heard: impl FnOnce(&mut Guest)) -> Duration {
    let inside = format!("/share/{number}");
    for look in case.looks {
        // Twice, so that it comes out of the cache.
        let script = format!("cd {inside}; ( {} ) >/dev/null 2>&1; {}", look.script, look.script);
        assert_eq!(guest.try_run(&script).1, look.before, "{}: {}", case.name, look.script);
    }
    (case.act)(&guest.share.join(number.to_string()));
    let start = Instant::now();
    heard(guest);
    for look in case.looks {
        loop {
            let (_, seen) = guest.try_run(&format!("cd {inside}; {}", look.script));
            if seen == look.after {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{}: the guest still sees {seen:?} of {}", case.name, look.script);
        }
    }
    start.elapsed()
}

fn all_cases(guest: &mut Guest, hears: bool) {
    for number in 0..CASES.len() {
        prepare(&guest.share.join(number.to_string()));
    }
    for (number, case) in CASES.iter().enumerate() {
        if hears {
            guest.run(&format!("(watch /share/{number} >/tmp/events-{number} 2>&1 &)\n until grep -q READY /tmp/events-{number}; do sleep 0.05; done"));
        }
        let took = try_case(guest, number, case, |guest| {
            let start = Instant::now();
            let events = || case.events.iter().map(|event| format!("EVENT {event}\n"));
            let mut has_heard = !hears;
            while !has_heard {
                let heard = guest.run(&format!("cat /tmp/events-{number}"));
                has_heard = events().all(|event| heard.contains(&event));
                assert!(has_heard || start.elapsed() < PATIENCE, "{}: inotify said {heard:?}", case.name);
            }
        });
        eprintln!("{}: seen after {} ms", case.name, took.as_millis());
    }
}

#[test]
fn every_change_of_the_host_is_seen_and_heard_with_the_agent() {
    let Some(mut guest) = Guest::boot(Host::Ordinary, "", &["--cpus", "2"]) else { return };
    guest.wait_for_the_agent();
    all_cases(&mut guest, true);
    guest.end();
}

#[test]
fn every_change_of_the_host_is_seen_without_the_agent() {
    let Some(mut guest) = Guest::boot(Host::Same, "", &["--cpus", "2"]) else { return };
    guest.without_the_agent();
    all_cases(&mut guest, false);
    guest.end();
}

#[test]
fn what_the_guest_does_itself_is_heard_once() {
    let Some(mut guest) = Guest::boot(Host::Same, "", &["--cpus", "2"]) else { return };
    guest.wait_for_the_agent();
    guest.run(
        "cd /share; mkdir d; (watch d >/tmp/events 2>&1 &)\n until grep -q READY /tmp/events; do sleep 0.05; done",
    );
    guest.run("cd /share/d; echo x >file; mkdir sub; mv file sub/moved; rm sub/moved; rmdir sub; echo y >last");
    // The host's change comes after all of that through the same queue: what was an echo would have come before.
    fs::write(guest.share.join("d/end"), "").unwrap();
    let start = Instant::now();
    let heard = loop {
        let heard = guest.run("cat /tmp/events");
        if heard.contains("create end") {
            break heard;
        }
        assert!(start.elapsed() < PATIENCE, "{heard}");
    };
    let count = |event: &str| heard.lines().filter(|line| *line == format!("EVENT {event}")).count();
    for event in ["create file", "create sub", "moved_from file", "delete sub", "create last", "modify last"] {
        assert_eq!(count(event), 1, "{event}: {heard}");
    }
    guest.end();
}

#[test]
fn agent_that_died_is_replaced_and_finds_what_changed_meanwhile() {
    let Some(mut guest) = Guest::boot(Host::Same, "", &["--cpus", "2"]) else { return };
    guest.wait_for_the_agent();
    fs::write(guest.share.join("file"), "before").unwrap();
    assert_eq!(guest.run("cat /share/file; cat /share/file"), "beforebefore");
    guest.run("kill -9 $(cat /proc/[0-9]*/stat | sed -n 's/^\\([0-9]*\\) (agent) .*/\\1/p')");
    fs::write(guest.share.join("file"), "while nobody looked").unwrap();
    let start = Instant::now();
    while guest.run("cat /share/file") != "while nobody looked" {
        assert!(start.elapsed() < PATIENCE, "the guest never saw it");
    }
    guest.wait_for_the_agent();
    guest.end();
}

#[test]
fn thousands_of_changes_at_once_are_seen() {
    const FILES: usize = 3000;
    let Some(mut guest) = Guest::boot(Host::Same, "", &["--cpus", "2"]) else { return };
    guest.wait_for_the_agent();
    let name = |number: usize| guest.share.join(format!("many/{number}"));
    fs::create_dir(guest.share.join("many")).unwrap();
    (0..FILES).for_each(|number| fs::write(name(number), "old").unwrap());
    // The guest knows them all.
    assert_eq!(guest.run("cd /share/many; cat * | wc -c"), format!("{}\n", 3 * FILES));
    let name = |number: usize| guest.share.join(format!("many/{number}"));
    for number in 0..FILES {
        if number % 2 == 0 {
            fs::remove_file(name(number)).unwrap();
        } else {
            fs::write(name(number), "newer").unwrap();
        }
    }
    let start = Instant::now();
    let expected = format!("{}\n", 5 * FILES / 2);
    loop {
        let seen = guest.run("cd /share/many; cat * 2>/dev/null | wc -c");
        if seen == expected {
            break;
        }
        assert!(start.elapsed() < 3 * PATIENCE, "the guest still sees {seen}");
    }
    eprintln!("{FILES} changes: seen after {} ms", start.elapsed().as_millis());
    guest.end();
}
