//! The sidecar gives way before the kernel would have to: floods of half-sent messages never take more than the limit.

use std::sync::mpsc::{channel, Sender};
use std::thread::JoinHandle;

use sidegate_tests::ports;
use sidegate_tests::postgres::{Major, Options};
use sidegate_tests::shop::{self, DATABASE};
use sidegate_tests::wire::{query, state, Frame, Wire};

/// What the flood may grow to before it is over the limit.
const ROOM: u64 = 160 << 20;
/// One message that never ends.
const HALF: usize = 15 << 20;
/// Together far more than the room.
const FLOODS: usize = 16;

/// A number of KiB from `/proc/self/status`, in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kib << 10
}

/// A Bind of which the last bytes never come; says when it has sent what it can. What it was told in the end.
fn flood(port: u16, sent: &Sender<()>) -> Option<Frame> {
    let wire = send(port);
    sent.send(()).unwrap();
    wire?.receive().ok().flatten()
}

fn send(port: u16) -> Option<Wire> {
    let mut wire = Wire::login(port, DATABASE).ok()?;
    let head = [&[b'B'][..], &(HALF as u32 + 100).to_be_bytes()].concat();
    wire.send(&head).ok()?;
    let piece = [b'x'; 64 * 1024];
    for _ in 0..HALF / piece.len() {
        if wire.send(&piece).is_err() {
            break;
        }
    }
    Some(wire)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_half_sent_messages_ends_before_memory_does() {
    let server = shop::server(Major::V18, Options::default()).unwrap();
    let port = ports::free().unwrap();
    // Most of the limit is free at the start, whatever the test's own process weighs.
    let limit = status("VmRSS:") * 2 + ROOM;
    let config = shop::configuration(server.port, port, "", "");
    let world = shop::setup(config).memory(limit).start().await.unwrap();
    let before = status("VmRSS:");
    assert!(before * 100 < limit * 60, "{before} of {limit}");
    let floods = tokio::task::spawn_blocking(move || {
        let mut quiet = Wire::login(port, DATABASE).unwrap();
        let (sent, all) = channel();
        let floods: Vec<JoinHandle<Option<Frame>>> = (0..FLOODS)
            .map(|_| {
                let sent = sent.clone();
                std::thread::spawn(move || flood(port, &sent))
            })
            .collect();
        for _ in 0..FLOODS {
            all.recv().unwrap();
        }
        // Who held little is still there. Whether there is room again depends on this process's allocator.
        let state = state(&quiet.ask(&[query("SELECT 1")]).unwrap());
        assert!(matches!(state.as_deref(), None | Some("58000")), "{state:?}");
        floods
    })
    .await
    .unwrap();
    let most = status("VmHWM:");
    assert!(most < limit, "{most} of {limit}");
    // Ends the floods that were not ended before.
    world.stop().await;
    let told: Vec<Frame> = floods.into_iter().filter_map(|flood| flood.join().unwrap()).collect();
    let begins = "Sidegate ended this session: Sidegate was short of memory";
    let short = |frame: &&Frame| frame.field(b'M').is_some_and(|text| text.starts_with(begins));
    let ended: Vec<&Frame> = told.iter().filter(short).collect();
    assert!(!ended.is_empty(), "no flood was ended: {told:?}");
    assert!(ended.iter().all(|frame| frame.field(b'C').as_deref() == Some("57P01")));
}
