//! Standard input that can be waited for without ignoring signals.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use crate::stop::Stop;

/// Time between two looks for a signal.
const INTERVAL: Duration = Duration::from_millis(100);
/// Number of bytes that are read at once.
const CHUNK: usize = 1 << 16;
/// Number of chunks that are read ahead.
const CHUNKS: usize = 4;

/// A source of lines.
pub trait Source: BufRead {
    /// Returns whether the next bytes are not there yet.
    fn would_wait(&mut self) -> bool {
        false
    }
}

impl<R: Read> Source for BufReader<R> {}

/// Standard input, which ends early if the batch is to stop: the writer of a pipe may send nothing for a long time.
pub struct Pipe {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
    /// A chunk that has been received and not read.
    next: Option<io::Result<Vec<u8>>>,
    stop: Stop,
}

impl Pipe {
    /// Starts to read standard input in a thread, which ends with the process.
    pub fn new(stop: Stop) -> Self {
        let (sender, chunks) = sync_channel(CHUNKS);
        thread::spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK];
                let read = io::stdin().lock().read(&mut chunk);
                if matches!(&read, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
                    continue;
                }
                let is_last = !matches!(read, Ok(1..));
                let chunk = read.map(|bytes| {
                    chunk.truncate(bytes);
                    chunk
                });
                if sender.send(chunk).is_err() || is_last {
                    break;
                }
            }
        });
        Self { chunks, chunk: io::Cursor::default(), next: None, stop }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?.read(buffer)?;
        self.consume(bytes);
        Ok(bytes)
    }
}

impl Source for Pipe {
    fn would_wait(&mut self) -> bool {
        // An error or the end is what the next read returns.
        if self.is_empty() && self.next.is_none() {
            self.next = self.chunks.try_recv().ok();
        }
        self.is_empty() && self.next.is_none()
    }
}

impl Pipe {
    fn is_empty(&self) -> bool {
        self.chunk.position() >= self.chunk.get_ref().len() as u64
    }
}

impl BufRead for Pipe {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.is_empty() {
            match self.next.take().map_or_else(|| self.chunks.recv_timeout(INTERVAL), Ok) {
                Ok(chunk) => {
                    self.chunk = io::Cursor::new(chunk?);
                    // The end.
                    if self.chunk.get_ref().is_empty() {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) if !self.stop.is_set() => {}
                Err(_) => break,
            }
        }
        self.chunk.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.chunk.consume(bytes);
    }
}
