// SPDX-License-Identifier: Apache-2.0
//! Tests of multiplexed streams: by table, by random schedules, by broken bytes.

use super::*;

impl Streams {
    /// All that is to go over the pipe, as if it had.
    pub fn outgoing(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let more @ 1.. = self.to_send().len() {
            all.extend_from_slice(self.to_send());
            self.sent(more);
        }
        all
    }
}

/// Moves what `from` has to say over to `to`.
fn carry(from: &mut Streams, to: &mut Streams) {
    let bytes = from.outgoing();
    to.receive(&bytes).unwrap();
}

fn read_all(streams: &mut Streams, stream: u32) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 1000];
    while let Ok(Some(n @ 1..)) = streams.read(stream, &mut buffer) {
        all.extend_from_slice(&buffer[..n]);
    }
    all
}

#[test]
fn a_stream_is_opened_written_and_ended_each_way_on_its_own() {
    let (mut host, mut guest) = (Streams::host(), Streams::guest());
    let stream = host.open();
    assert_eq!(host.write(stream, b"in"), Ok(2));
    host.end(stream);
    carry(&mut host, &mut guest);
    assert_eq!(guest.accept(), Some(stream));
    assert_eq!(guest.accept(), None);
    assert_eq!(read_all(&mut guest, stream), b"in");
    assert_eq!(guest.read(stream, &mut [0; 8]), Ok(Some(0)));
    assert_eq!(host.write(stream, b"more"), Err(Gone));
    // The other way is still open.
    assert_eq!(host.read(stream, &mut [0; 8]), Ok(None));
    assert_eq!(guest.write(stream, b"out"), Ok(3));
    guest.end(stream);
    guest.forget(stream);
    carry(&mut guest, &mut host);
    assert_eq!(read_all(&mut host, stream), b"out");
    assert_eq!(host.read(stream, &mut [0; 8]), Ok(Some(0)));
    host.forget(stream);
    assert!(host.outgoing().is_empty(), "both ways ended: no reset");
}

#[test]
fn stream_0_is_there_from_the_start() {
    let (mut host, mut guest) = (Streams::host(), Streams::guest());
    assert_eq!(guest.write(0, b"hello"), Ok(5));
    carry(&mut guest, &mut host);
    assert_eq!(host.touched(), [0]);
    assert_eq!(read_all(&mut host, 0), b"hello");
}

#[test]
fn a_forgotten_stream_is_reset_and_what_was_sent_before_is_still_read() {
    let (mut host, mut guest) = (Streams::host(), Streams::guest());
    let stream = host.open();
    assert_eq!(host.write(stream, b"last words"), Ok(10));
    host.forget(stream);
    carry(&mut host, &mut guest);
    assert_eq!(read_all(&mut guest, stream), b"last words");
    assert_eq!(guest.read(stream, &mut [0; 8]), Err(Gone));
    assert_eq!(guest.write(stream, b"x"), Err(Gone));
    guest.forget(stream);
    assert!(guest.outgoing().is_empty(), "a reset is not answered");
}

#[test]
fn a_sleeping_reader_holds_up_no_other_stream() {
    let (mut host, mut guest) = (Streams::host(), Streams::guest());
    let (slow, fast) = (host.open(), host.open());
    let data = vec![1; WINDOW as usize + 1];
    let mut sent = 0;
    loop {
        let n = host.write(slow, &data[sent..]).unwrap();
        carry(&mut host, &mut guest);
        sent += n;
        if n == 0 {
            break;
        }
    }
    assert_eq!(sent, WINDOW as usize);
    assert_eq!(host.write(fast, b"through"), Ok(7));
    carry(&mut host, &mut guest);
    assert_eq!(read_all(&mut guest, fast), b"through");
    // Once it is read, there is room again.
    assert_eq!(read_all(&mut guest, slow).len(), sent);
    carry(&mut guest, &mut host);
    assert_eq!(host.write(slow, &data[sent..]), Ok(1));
}

#[test]
fn a_peer_that_breaks_the_protocol_is_caught() {
    let frames = |list: &[(u32, Frame<'_>)]| {
        let mut bytes = Vec::new();
        for (stream, frame) in list {
            put(&mut bytes, *stream, *frame);
        }
        Streams::guest().receive(&bytes).map_err(|v| v.0)
    };
    let data = vec![0; MAX_DATA];
    let mut flood = vec![(0, Frame::Data(&data)); (WINDOW as usize) / MAX_DATA];
    assert_eq!(frames(&flood), Ok(()));
    flood.push((0, Frame::Data(b"x")));
    let text = |result: Result<(), String>| result.unwrap_err();
    assert_eq!(
        text(frames(&flood)),
        "stream 0: more data than it has credit"
    );
    let twice = [(1, Frame::Open), (1, Frame::Open)];
    assert_eq!(text(frames(&twice)), "stream 1: opened twice");
    let late = [(0, Frame::End), (0, Frame::Data(b"x"))];
    assert_eq!(text(frames(&late)), "stream 0: data after its end");
    let rich = [(0, Frame::Credit(1))];
    assert_eq!(
        text(frames(&rich)),
        "stream 0: more credit than it can have"
    );
    let dead = [(0, Frame::Reset), (0, Frame::Data(b"x"))];
    assert_eq!(text(frames(&dead)), "stream 0: a frame after its reset");
    let ends = [(0, Frame::End), (0, Frame::End)];
    assert_eq!(text(frames(&ends)), "stream 0: data after its end");
    // What the host says about a stream that is forgotten here is no harm.
    assert_eq!(frames(&[(9, Frame::Data(b"x")), (9, Frame::Reset)]), Ok(()));
}

/// The host has every stream opened itself, so it knows of each: one that a guest opens, 128 KiB of
/// the host's memory each, or makes up, is a breach.
#[test]
fn a_host_lets_nobody_open_streams() {
    let said = |frame: Frame<'_>, stream| {
        let mut host = Streams::host();
        let known = host.open();
        assert_eq!(known, 1);
        host.forget(known);
        let mut bytes = Vec::new();
        put(&mut bytes, stream, frame);
        host.receive(&bytes).map_err(|v| v.0)
    };
    let opened = said(Frame::Open, 2).unwrap_err();
    assert_eq!(opened, "stream 2: opened by the side that may not");
    for frame in [
        Frame::Data(b"x"),
        Frame::End,
        Frame::Reset,
        Frame::Credit(1),
    ] {
        assert_eq!(said(frame, 1), Ok(()), "forgotten, but not there");
        let why = said(frame, 2).unwrap_err();
        assert_eq!(why, "stream 2: was never opened");
    }
}

/// A peer that sends and never reads: what waits for it stays small, and it gets no more credit.
#[test]
fn who_does_not_read_gets_no_credit() {
    let (mut host, mut guest) = (Streams::host(), Streams::guest());
    let stream = host.open();
    carry(&mut host, &mut guest);
    let data = [1; 1000];
    let mut sent = 0;
    for _ in 0..1_000 {
        sent += guest.write(stream, &data).unwrap();
        carry(&mut guest, &mut host);
        read_all(&mut host, stream);
    }
    assert_eq!(sent, WINDOW as usize, "what it had from the start");
    assert!(host.outgoing().len() < 100, "one frame of credit");
}

/// A small generator, so that a failure comes again (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

/// Both ways of one stream, and what shall go and has come over it.
#[derive(Default)]
struct Way {
    data: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
    ended: bool,
}

#[test]
fn every_byte_arrives_in_order_on_any_schedule() {
    for seed in 1..=60 {
        let mut random = Random(seed);
        let mut ends = [Streams::host(), Streams::guest()];
        let mut wire: [Vec<u8>; 2] = Default::default();
        let mut ways: Vec<(u32, [Way; 2])> = Vec::new();
        for _ in 0..1 + random.below(5) {
            let stream = ends[0].open();
            let way = |random: &mut Random| Way {
                data: (0..random.below(400_000))
                    .map(|_| random.below(256) as u8)
                    .collect(),
                ..Way::default()
            };
            ways.push((stream, [way(&mut random), way(&mut random)]));
        }
        let mut steps = 0;
        while !ways
            .iter()
            .all(|(_, both)| both.iter().all(|way| way.ended))
        {
            steps += 1;
            assert!(steps < 1_000_000, "seed {seed} stands still");
            let side = random.below(2);
            let n = random.below(ways.len());
            let (stream, both) = &mut ways[n];
            match random.below(4) {
                0 => {
                    let way = &mut both[side];
                    let most = (way.data.len() - way.sent).min(random.below(50_000));
                    let chunk = &way.data[way.sent..way.sent + most];
                    // The guest may not have heard of the stream yet.
                    match ends[side].write(*stream, chunk) {
                        Ok(n) => way.sent += n,
                        Err(Gone) => continue,
                    }
                    if way.sent == way.data.len() {
                        ends[side].end(*stream);
                    }
                }
                1 => {
                    let way = &mut both[1 - side];
                    let mut buffer = vec![0; 1 + random.below(70_000)];
                    match ends[side].read(*stream, &mut buffer) {
                        Ok(Some(0)) => way.ended = true,
                        Ok(Some(n)) => way.got.extend_from_slice(&buffer[..n]),
                        Ok(None) | Err(Gone) => {}
                    }
                }
                2 => wire[side].extend(ends[side].outgoing()),
                _ => {
                    let n = wire[side].len().min(random.below(60_000));
                    let bytes: Vec<u8> = wire[side].drain(..n).collect();
                    ends[1 - side].receive(&bytes).unwrap();
                }
            }
        }
        for (stream, both) in &ways {
            for way in both {
                assert!(way.got == way.data, "seed {seed}, stream {stream}");
            }
        }
    }
}

#[test]
fn no_bytes_upset_it() {
    let mut valid = Streams::host();
    let stream = valid.open();
    valid.write(stream, b"some data").unwrap();
    valid.write(0, b"more").unwrap();
    valid.end(stream);
    let valid = valid.outgoing();
    let mut random = Random(7);
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        bytes.truncate(1 + random.below(bytes.len()));
        let mut streams = Streams::guest();
        let _ = streams.receive(&bytes);
        while let Some(stream) = streams.accept() {
            let _ = read_all(&mut streams, stream);
            streams.forget(stream);
        }
    }
}
