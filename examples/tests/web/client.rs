//! A web server process and a small HTTP client for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Path of the server's executable.
pub const WEB: &str = env!("CARGO_BIN_EXE_web");

/// A server on a free port; it is killed when dropped.
pub struct Server {
    /// The server process.
    pub child: Child,
    /// The port that the server listens on.
    pub port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the port of the address that a server prints, such as `http://[::1]:8080/ (...)`.
pub fn port(line: &str) -> u16 {
    let address = line.split(' ').next().unwrap_or_default().trim_end_matches('/');
    address.rsplit(':').next().unwrap_or_default().parse().unwrap_or_else(|_| panic!("{line:?}"))
}

/// A response.
pub struct Response {
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_string()
    }
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(WEB).args(["--port", "0"]).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { child, port: port(&line) }
    }

    pub fn connect(&self, text: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(text).unwrap();
        stream
    }

    /// Sends raw bytes and reads the response to its end.
    pub fn raw(&self, text: &[u8]) -> Response {
        let mut bytes = Vec::new();
        self.connect(text).read_to_end(&mut bytes).unwrap();
        let split = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..split].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Response { status, head, body: bytes[split + 4..].to_vec() }
    }

    pub fn get(&self, path: &str) -> Response {
        self.raw(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())
    }

    pub fn post(&self, path: &str, body: &str) -> Response {
        self.raw(post(path, body).as_bytes())
    }

    /// Submits a request for images and returns its identifier.
    pub fn submit(&self, settings: Value) -> String {
        let response = self.post("/api/generate", &settings.to_string());
        assert_eq!(response.status, 202, "{}", response.json());
        response.json()["id"].as_str().unwrap().to_string()
    }

    /// Collects all events of a request until its stream ends.
    pub fn events(&self, id: &str) -> Vec<(String, Value)> {
        self.listen(id, "").collect()
    }

    /// Streams the events of a request.
    pub fn listen(&self, id: &str, headers: &str) -> impl Iterator<Item = (String, Value)> + use<> {
        let request = format!("GET /api/generate/{id}/events HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n");
        let mut lines = BufReader::new(self.connect(request.as_bytes())).lines().map(Result::unwrap);
        std::iter::from_fn(move || {
            let name = lines.by_ref().find_map(|l| l.strip_prefix("event: ").map(str::to_string))?;
            let data = lines.next()?;
            Some((name, serde_json::from_str(data.strip_prefix("data: ")?).unwrap()))
        })
    }

    /// Asserts that a short run ends in time, so that the server is free again.
    pub fn assert_free(&self, within: Duration) {
        let start = Instant::now();
        let id = self.submit(json!({"prompt": "a parrot"}));
        assert_eq!(self.events(&id).last().unwrap().0, "done");
        assert!(start.elapsed() < within, "{:?}", start.elapsed());
    }
}

pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}
