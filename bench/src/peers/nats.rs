//! NATS JetStream: each record a `PUB` with a subject of its own for the acknowledgement.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::values::Values;
use crate::load::{Protocol, Taken, Which};

/// Longest line or acknowledgement that is expected.
const MESSAGE_SIZE_MAX: usize = 64 << 10;

const GREETING: &str = concat!(
    r#"CONNECT {"verbose":false,"pedantic":false,"tls_required":false,"lang":"rust","#,
    r#""version":"1","protocol":1,"echo":false}"#,
    "\r\n"
);

/// Publishes to streams, each with one subject.
pub struct Publish {
    values: Values,
    streams: u32,
}

impl Publish {
    /// Publishes values of a size to so many streams by turns.
    pub fn new(record_size: usize, streams: u32) -> Self {
        Self { values: Values::new(record_size), streams }
    }

    /// Makes the streams, each in files, kept by the limits' policy, with one replica.
    fn create(&self, reader: &mut impl BufRead, stream: &mut TcpStream) -> Result<(), String> {
        for index in 0..self.streams {
            let config =
                format!(r#"{{"name":"s{index}","subjects":["t.{index}"],"retention":"limits","#)
                    + r#""storage":"file","num_replicas":1,"max_consumers":-1,"max_msgs":-1,"#
                    + r#""max_bytes":-1,"max_age":0,"discard":"old"}"#;
            let size = config.len();
            let text =
                format!("PUB $JS.API.STREAM.CREATE.s{index} _B.0.new {size}\r\n{config}\r\n");
            stream.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
            let head = line(reader)?;
            let Some(size) = head.strip_prefix("MSG _B.0.new 1 ").and_then(|it| it.parse().ok())
            else {
                return Err(format!("NATS answers {head} to a new stream"));
            };
            let mut answer = vec![0; std::cmp::min::<usize>(size, MESSAGE_SIZE_MAX) + 2];
            reader.read_exact(&mut answer).map_err(|error| error.to_string())?;
            let answer = String::from_utf8_lossy(&answer);
            if answer.contains(r#""error""#) {
                return Err(format!("a new stream: {answer}"));
            }
        }
        Ok(())
    }
}

/// The next line that is not a ping or the server's greeting.
fn line(reader: &mut impl BufRead) -> Result<String, String> {
    loop {
        let mut line = String::new();
        let mut limited = reader.take(MESSAGE_SIZE_MAX as u64);
        if limited.read_line(&mut line).map_err(|error| error.to_string())? == 0 {
            return Err("NATS closed the connection".to_owned());
        }
        if !line.starts_with("INFO ") {
            return Ok(line.trim_end().to_owned());
        }
    }
}

impl Protocol for Publish {
    fn open(&mut self, connection: usize, stream: &mut TcpStream) -> Result<(), String> {
        let read = stream.try_clone().map_err(|error| error.to_string())?;
        let mut reader = BufReader::new(read);
        let hello = format!("{GREETING}SUB _B.{connection}.* 1\r\nPING\r\n");
        stream.write_all(hello.as_bytes()).map_err(|error| error.to_string())?;
        let answer = line(&mut reader)?;
        if answer != "PONG" {
            return Err(format!("NATS greets with {answer}"));
        }
        if connection == 0 { self.create(&mut reader, stream) } else { Ok(()) }
    }

    fn encode(&mut self, connection: usize, number: u64, out: &mut Vec<u8>) {
        let value = self.values.of(number);
        let subject = number % u64::from(self.streams);
        let size = value.len();
        let head = write!(out, "PUB t.{subject} _B.{connection}.{number} {size}\r\n");
        head.expect("memory takes all");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }

    fn take(
        &mut self,
        connection: usize,
        received: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Taken, String> {
        let line = received.windows(2).take(MESSAGE_SIZE_MAX).position(|two| two == b"\r\n");
        let Some(end) = line else { return Ok(Taken::More) };
        let head = String::from_utf8_lossy(&received[..end]);
        if head == "PING" {
            out.extend_from_slice(b"PONG\r\n");
            return Ok(Taken::Other { size: end + 2 });
        }
        if head == "PONG" || head == "+OK" || head.starts_with("INFO ") {
            return Ok(Taken::Other { size: end + 2 });
        }
        let Some((number, size)) = acknowledged(&head, connection) else {
            return Err(format!("NATS says {head}"));
        };
        let (body_at, size) = (end + 2, end + 2 + size + 2);
        let Some(body) = received.get(body_at..size) else { return Ok(Taken::More) };
        let which = Which::Number(number);
        let has = |text: &[u8]| body.windows(text.len()).any(|found| found == text);
        if has(b"\"seq\"") && !has(b"\"error\"") {
            Ok(Taken::Answer { size, which })
        } else if has(b"\"code\":503") || has(b"\"code\":429") {
            Ok(Taken::Refused { size, which })
        } else {
            Err(format!("NATS answers {}", String::from_utf8_lossy(body)))
        }
    }
}

/// The number and the size of `MSG _B.CONNECTION.NUMBER 1 SIZE`.
fn acknowledged(head: &str, connection: usize) -> Option<(u64, usize)> {
    let mut words = head.strip_prefix("MSG _B.")?.split(' ');
    let (to, number) = words.next()?.split_once('.')?;
    let size: usize = words.next_back()?.parse().ok()?;
    (to.parse() == Ok(connection) && size <= MESSAGE_SIZE_MAX)
        .then(|| Some((number.parse().ok()?, size)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_published_with_its_number_to_answer_to() {
        let mut out = Vec::new();
        Publish::new(3, 4).encode(2, 7, &mut out);
        let text = String::from_utf8(out).expect("text");
        assert_eq!(&text[..19], "PUB t.3 _B.2.7 3\r\n".to_owned() + &text[18..19]);
        assert_eq!(text.len(), 18 + 5);
    }

    #[test]
    fn acknowledgements_name_their_request() {
        let mut publish = Publish::new(3, 1);
        let mut out = Vec::new();
        let mut take = |bytes: &[u8]| publish.take(1, bytes, &mut out);
        let good = b"MSG _B.1.42 1 25\r\n{\"stream\":\"s0\", \"seq\":17}\r\nPI";
        for cut in 0..45 {
            assert_eq!(take(&good[..cut]), Ok(Taken::More), "{cut}");
        }
        assert_eq!(take(good), Ok(Taken::Answer { size: 45, which: Which::Number(42) }));
        let full = b"MSG _B.1.43 1 22\r\n{\"error\":{\"code\":503}}\r\n";
        assert_eq!(take(full), Ok(Taken::Refused { size: 42, which: Which::Number(43) }));
        let wrong = b"MSG _B.1.43 1 22\r\n{\"error\":{\"code\":400}}\r\n";
        assert!(take(wrong).is_err());
        assert!(take(b"MSG _B.0.43 1 2\r\n{}\r\n").is_err(), "of another connection");
        assert!(take(b"-ERR 'Stale Connection'\r\n").is_err());
        assert_eq!(take(b"PING\r\nx"), Ok(Taken::Other { size: 6 }));
        assert_eq!(out, b"PONG\r\n");
    }
}
