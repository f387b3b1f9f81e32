//! Receives webhooks: answers each POST with 204 and prints its body as one line. The demo reads
//! usage records with it. First line: `listening on ADDR`. Ends when it is killed.
//!
//! Standard library only and one thread per connection: it is as plain as a receiver can be, so
//! that what it shows is what was sent.

#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Bytes of a body. Beyond: 413.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address)?;
    print_line(&format!("listening on {}", listener.local_addr()?))?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            if let Err(error) = serve(&stream) {
                eprintln!("webhook-sink: {error}");
            }
        });
    }
    Ok(())
}

/// Serves one connection until the sender closes it.
fn serve(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    while let Some(length) = read_head(&mut reader)? {
        let Some(length) = length else {
            return refuse(stream, "411 Length Required");
        };
        if length > BODY_BYTES_MAX {
            return refuse(stream, "413 Content Too Large");
        }
        let mut body = String::new();
        (&mut reader).take(length).read_to_string(&mut body)?;
        print_line(&body.replace(['\r', '\n'], " "))?;
        (&*stream).write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    }
    Ok(())
}

/// Reads to the blank line. `None`: the sender is gone. Inside: the Content-Length, if any.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Option<u64>>> {
    let mut length = None;
    let mut line = String::new();
    for number in 0.. {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return if number == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
        }
    }
    Ok(Some(length))
}

fn refuse(mut stream: &TcpStream, status: &str) -> io::Result<()> {
    let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes())
}

fn print_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
