//! The fence on the real kernel: the real program writes its table in a network of the test's own, and real processes of
//! other users try to get out.
//!
//! Needs root, `ip`, `setpriv`, `bash` and Python; without them it says so, and counts as skipped in `target/skipped.txt`. Each
//! network is a namespace of a thread, and gone with it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::print_stderr
)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{unshare, CloneFlags};
use sidegate_policies::wire::Enforced;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sidegate-sidecar");
/// The pod, and somebody in the world.
const HERE: [&str; 2] = ["10.9.0.1", "fd09::1"];
const THERE: [&str; 2] = ["10.9.0.2", "fd09::2"];
const SIDECAR: u32 = 61_937;
const AGENT: u32 = 1_000;

/// Why this machine cannot show it.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root: no network of its own, no other users".to_owned());
    }
    for program in ["ip", "setpriv", "bash", "python3"] {
        if Command::new(program).arg("--version").output().is_err() && Command::new(program).arg("-V").output().is_err()
        {
            return Some(format!("no `{program}`"));
        }
    }
    None
}

/// Runs this in a network of its own beside a world that listens on port 8080 of both families, or says why not.
fn fenced(name: &str, test: fn()) {
    if let Some(why) = missing() {
        let line = format!("{name}: SKIPPED 1 test: {why}");
        eprintln!("{line}");
        let note = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/skipped.txt");
        let mut kept = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(note)
            .unwrap();
        writeln!(kept, "{line}").unwrap();
        return;
    }
    // Namespaces are of threads: what a thread starts lives in its own.
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let pod = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
        let (ready, up) = mpsc::channel();
        std::thread::spawn(move || world(&pod, &ready));
        ip("link set lo up");
        up.recv_timeout(Duration::from_secs(10)).expect("the world is there");
        for address in HERE {
            ip(&format!("address add {address}/{} dev out nodad", length(address)));
        }
        ip("link set out up");
        for address in THERE {
            ip(&format!("route add default via {address}"));
        }
        test();
    })
    .join()
    .unwrap();
}

/// What is outside: it says hello to whoever comes.
fn world(pod: &str, ready: &mpsc::Sender<()>) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip(&format!("link add in type veth peer name out netns {pod}"));
    for address in THERE {
        ip(&format!("address add {address}/{} dev in nodad", length(address)));
    }
    ip("link set in up");
    let listeners = THERE.map(|address| TcpListener::bind((address, 8_080)).unwrap());
    ready.send(()).unwrap();
    for listener in listeners {
        std::thread::spawn(move || {
            for mut caller in listener.incoming().flatten() {
                let _ = caller.write_all(b"hello");
            }
        });
    }
    // Who calls the agent from outside: a line of the pod's asks for it.
    let called = TcpListener::bind((THERE[0], 8_081)).unwrap();
    for _ in called.incoming().flatten() {
        if let Ok(mut agent) = TcpStream::connect((HERE[0], 9_090)) {
            let _ = agent.write_all(b"from outside\n");
            let _ = agent.read_to_end(&mut Vec::new());
        }
    }
}

fn length(address: &str) -> u8 {
    match address.contains(':') {
        true => 64,
        false => 24,
    }
}

fn ip(arguments: &str) {
    // `nodad` is a word of IPv6 alone.
    let words = arguments
        .split(' ')
        .filter(|word| *word != "nodad" || arguments.contains(':'));
    let output = Command::new("ip").args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
}

fn raise(users: &str) -> Output {
    Command::new(PROGRAM)
        .arg("fence")
        .env("SIDEGATE_FENCE_UIDS", users)
        .output()
        .unwrap()
}

/// Runs a line of bash as a user without any right.
fn as_user(uid: u32, line: &str) -> Output {
    let user = format!("--reuid={uid}");
    let all = [
        "--clear-groups",
        "--regid=1000",
        "--bounding-set=-all",
        "--",
        "timeout",
        "5",
        "bash",
        "-c",
        line,
    ];
    Command::new("setpriv").arg(user).args(all).output().unwrap()
}

/// What a user hears from the world at an address.
fn hears(uid: u32, address: &str) -> String {
    let output = as_user(uid, &format!("exec 3<>/dev/tcp/{address}/8080 && head -c 5 <&3"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn only_the_sidecars_user_has_a_way_out_of_a_fenced_pod() {
    fenced("only_the_sidecars_user_has_a_way_out_of_a_fenced_pod", || {
        for address in THERE {
            assert_eq!(hears(AGENT, address), "hello", "there is a way to {address} at first");
        }
        let raised = raise(&SIDECAR.to_string());
        assert!(raised.status.success(), "{}", String::from_utf8_lossy(&raised.stderr));
        for address in THERE {
            assert_eq!(hears(SIDECAR, address), "hello", "{address}");
            for uid in [AGENT, 0, SIDECAR + 1] {
                assert_eq!(hears(uid, address), "", "user {uid} to {address}");
            }
            // UDP: a datagram that is refused where it is sent.
            for port in [53, 443] {
                let sent = as_user(AGENT, &format!("echo x > /dev/udp/{address}/{port}"));
                assert!(!sent.status.success(), "a datagram to {address}:{port}");
            }
        }
        // The sidecar listens on loopback: agents reach it there.
        let local = TcpListener::bind("127.0.0.1:15400").unwrap();
        std::thread::spawn(move || local.accept().map(|(mut caller, _)| caller.write_all(b"proxy")));
        let output = as_user(AGENT, "exec 3<>/dev/tcp/127.0.0.1/15400 && head -c 5 <&3");
        assert_eq!(output.stdout, b"proxy");
        // An agent answers whoever calls it.
        let agent = TcpListener::bind((HERE[0], 9_090)).unwrap();
        let asked = as_user(SIDECAR, &format!("exec 3<>/dev/tcp/{}/8081", THERE[0]));
        assert!(asked.status.success());
        let (mut caller, _) = agent.accept().unwrap();
        let mut said = [0; 13];
        caller.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"from outside\n");
        caller.write_all(b"an answer").unwrap();
    });
}

/// What the canary says, asked in this network as the sidecar asks.
fn canary() -> Enforced {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(sidegate_sidecar::fence::canary::look())
}

/// One that is taken down later, the suite of nodes shows.
#[test]
fn the_canary_knows_a_fence_that_stands_from_none() {
    fenced("the_canary_knows_a_fence_that_stands_from_none", || {
        assert_eq!(canary(), Enforced::False, "before there is one");
        assert!(raise(&SIDECAR.to_string()).status.success());
        assert_eq!(canary(), Enforced::True);
    });
}

#[test]
fn nobody_sends_on_a_connection_that_the_sidecar_made() {
    fenced("nobody_sends_on_a_connection_that_the_sidecar_made", || {
        assert!(raise(&SIDECAR.to_string()).status.success());
        let (here, there) = (HERE[0], THERE[0]);
        let from = |port: u16| {
            format!(
                "exec python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                 s.bind((\"{here}\", {port})); s.sendto(b\"x\", (\"{there}\", 53))'"
            )
        };
        let sent = as_user(SIDECAR, &from(40_000));
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
        for port in [40_000, 40_001] {
            let sent = as_user(AGENT, &from(port));
            let said = String::from_utf8_lossy(&sent.stderr);
            assert!(said.contains("PermissionError"), "port {port}: {said}");
        }
    });
}

#[test]
fn a_fence_is_put_up_again_over_an_older_one_and_lets_out_whom_it_names() {
    fenced(
        "a_fence_is_put_up_again_over_an_older_one_and_lets_out_whom_it_names",
        || {
            assert!(raise("61937").status.success());
            assert!(raise("61938, 2000").status.success());
            assert_eq!(hears(61_938, THERE[0]), "hello");
            assert_eq!(hears(2_000, THERE[0]), "hello");
            assert_eq!(hears(61_937, THERE[0]), "", "the older fence's user");
        },
    );
}

#[test]
fn whoever_cannot_put_up_a_fence_ends_the_pod() {
    fenced("whoever_cannot_put_up_a_fence_ends_the_pod", || {
        for (users, said) in [("", "no user is named"), ("root", "`root` is not the number of a user")] {
            let refused = raise(users);
            let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && stderr.contains(said), "{stderr}");
        }
        // Without NET_ADMIN there is no table; without SETUID nobody tries it.
        for (rights, said) in [
            ("-net_admin", "does not take the table"),
            ("-setuid", "cannot become user"),
        ] {
            let refused = Command::new("setpriv")
                .args([&format!("--bounding-set={rights}"), PROGRAM, "fence"])
                .env("SIDEGATE_FENCE_UIDS", "61937")
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && stderr.contains(said), "{rights}: {stderr}");
        }
    });
}
