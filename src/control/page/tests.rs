//! Visitors of pages, over real connections.

use super::*;
use crate::rt;
use crate::rt::ring::Ring;
use crate::state::ask;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{channel, Receiver};

/// More than two sockets hold between them.
const PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Pages at a listener with so many places, while `clients` run. Those whom it connects before it
/// lets go are accepted in one turn.
fn serving(places: usize, clients: impl FnOnce(SocketAddr, &dyn Fn()) + Send + 'static) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (pages, mut questions) = ask::queue(8);
    let page: Arc<[u8]> = vec![b'p'; PAGE_BYTES].into();
    std::thread::spawn(move || while questions.answer_next(|_| Arc::clone(&page)) {});
    let (go, begins) = channel::<()>();
    let (over, is_over): (_, Receiver<()>) = channel();
    let clients = std::thread::spawn(move || {
        clients(address, &|| go.send(()).unwrap());
        over.send(()).unwrap();
    });
    let page_of = |path: &[u8], _: &[u8]| (path == b"/p").then_some(Page::Metrics);
    let outlet = Outlet {
        listener: listener.into(),
        visitors_max: places,
        page_of: Box::new(page_of),
        door: None,
    };
    // Both channels end with the clients, however these end.
    let _ = begins.recv();
    let no_place = pages.turned_away();
    Ring::build().unwrap().block_on(async {
        let patrol = Patrol::start().unwrap();
        rt::spawn(serve(outlet, Rc::clone(&patrol), pages));
        while is_over.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            rt::sleep(Duration::from_millis(5)).await;
        }
    });
    clients.join().unwrap();
    no_place.load(Ordering::Relaxed)
}

fn connect(address: SocketAddr, sent: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(sent.as_bytes()).unwrap();
    stream
}

const GET: &str = "GET /p HTTP/1.1\r\nHost: a\r\n\r\n";

/// All of an answer.
fn answered(mut stream: &TcpStream) -> (String, usize) {
    let mut bytes = Vec::new();
    // One that is put out may be reset.
    let _ = stream.read_to_end(&mut bytes);
    let first: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != b'\r').collect();
    (String::from_utf8(first).unwrap(), bytes.len())
}

/// Catches: one who has said all, and is put out by those who come in the same turn because
/// nobody has read it yet.
#[test]
fn what_was_sent_is_heard_before_its_sender_is_put_out() {
    let put_out = serving(4, |address, go| {
        let asking = [connect(address, GET), connect(address, GET)];
        let _silent: Vec<_> = (0..12).map(|n| connect(address, GET.split_at(n).0)).collect();
        go();
        for stream in &asking {
            let (status, bytes) = answered(stream);
            assert_eq!(status, "HTTP/1.1 200 OK");
            assert!(bytes > PAGE_BYTES);
        }
    });
    assert_eq!(put_out, 10, "and of the others, only those for whom there is no room");
}

/// Catches: all places held by those who ask for pages and read nothing.
#[test]
fn who_reads_nothing_keeps_nobody_out() {
    serving(2, |address, go| {
        go();
        let mut slow = [connect(address, GET), connect(address, GET)];
        // Its first byte is there: as much as fits is under way, and the rest has to wait.
        slow.iter_mut().for_each(|stream| stream.read_exact(&mut [0]).unwrap());
        for _ in 0..3 {
            let (status, bytes) = answered(&connect(address, GET));
            assert_eq!(status, "HTTP/1.1 200 OK");
            assert!(bytes > PAGE_BYTES);
        }
    });
}

/// Catches: a line of the log for each of thousands, and some of which nobody ever hears.
#[test]
fn those_who_are_turned_away_are_told_of_once_a_second() {
    let (mut turned_away, start) = (TurnedAway::default(), Instant::now());
    let at = |ms| start + Duration::from_millis(ms);
    let told: Vec<_> =
        [0, 1, 999, 1_000, 1_001, 5_000].into_iter().map(|ms| turned_away.note(at(ms))).collect();
    assert_eq!(told, [Some(1), None, None, Some(3), None, Some(2)]);
}
