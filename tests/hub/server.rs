//! A hub on the loopback interface that does what a test tells it: mostly wrong things.
//!
//! It speaks as much HTTP/1.1 as a pull needs, one request a connection, and keeps what it was asked.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The offset of `Range: bytes=N-`, 0 without one.
    pub fn offset(&self) -> usize {
        let Some(range) = self.header("range") else {
            return 0;
        };
        let start = range
            .strip_prefix("bytes=")
            .and_then(|r| r.strip_suffix('-'));
        start
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| panic!("odd range {range}"))
    }
}

/// An answer; every part can be made wrong.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether to send a Content-Length.
    pub length: bool,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Don't close after the last byte sent: wait until the client does.
    pub hold: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
            length: true,
            cut: None,
            hold: false,
        }
    }

    /// Adds a header, or replaces it.
    pub fn with(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Reply {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }

    pub fn cut(mut self, after: usize) -> Reply {
        self.cut = Some(after);
        self
    }
}

/// The files of the one repository, `owner/name`.
pub type Files = Vec<(String, Vec<u8>)>;

/// Gets the request, how many of its method and path came before it, and the right answer.
pub type Twist = Box<dyn Fn(&Request, usize, Reply) -> Reply + Send + Sync>;

pub struct Hub {
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Hub {
    pub fn start(
        files: Files,
        twist: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
    ) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::<Request>::new()));
        let (shared, files, twist) = (
            log.clone(),
            Arc::new(files),
            Arc::new(Box::new(twist) as Twist),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, files, twist) = (shared.clone(), files.clone(), twist.clone());
                // A client that goes away mid-answer is what some tests are about.
                std::thread::spawn(move || drop(answer(stream, &log, &files, &twist)));
            }
        });
        Hub { url, log }
    }

    pub fn honest(files: Files) -> Hub {
        Hub::start(files, |_, _, right| right)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The requests for a file's bytes.
    pub fn gets(&self) -> Vec<Request> {
        self.requests()
            .into_iter()
            .filter(|r| r.method == "GET" && !r.path.starts_with("/api/"))
            .collect()
    }
}

fn answer(
    stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    files: &Files,
    twist: &Twist,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let Some(request) = read_request(&mut reader)? else {
        return Ok(());
    };
    let before = {
        let mut log = log.lock().unwrap();
        let same = |r: &&Request| r.method == request.method && r.path == request.path;
        let before = log.iter().filter(same).count();
        log.push(request.clone());
        before
    };
    let reply = twist(&request, before, right_answer(&request, files));
    send(stream, &request, &reply)?;
    if reply.hold {
        reader.read_to_end(&mut Vec::new())?; // returns when the client closes
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method: method.into(),
        path: path.into(),
        headers: BTreeMap::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        request
            .headers
            .insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    Ok(Some(request))
}

/// What an honest hub says.
fn right_answer(request: &Request, files: &Files) -> Reply {
    if request.path.starts_with("/api/models/owner/name/revision/") {
        let siblings: Vec<_> = files
            .iter()
            .map(|(f, _)| serde_json::json!({ "rfilename": f }))
            .collect();
        let body = serde_json::json!({ "id": "owner/name", "sha": COMMIT, "siblings": siblings });
        return Reply::new(200, body.to_string()).with("content-type", "application/json");
    }
    let file = request
        .path
        .strip_prefix("/owner/name/resolve/")
        .and_then(|p| p.split_once('/'))
        .map(|p| p.1);
    let Some((_, bytes)) = files.iter().find(|(name, _)| Some(name.as_str()) == file) else {
        return Reply::new(404, "Entry not found").with("x-error-code", "EntryNotFound");
    };
    serve(request, bytes)
}

/// A file's bytes from the requested offset on, with the hub's headers: its small files don't lie in the
/// large-file store, and are known by git's hash.
pub fn serve(request: &Request, bytes: &[u8]) -> Reply {
    let hex = |hash: &[u8]| -> String { hash.iter().map(|b| format!("{b:02x}")).collect() };
    let start = request.offset();
    let reply = match request.header("range") {
        None => Reply::new(200, bytes),
        Some(_) if start >= bytes.len() => Reply::new(416, ""),
        Some(_) => Reply::new(206, &bytes[start..]).with(
            "content-range",
            format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
        ),
    };
    let reply = reply
        .with("x-repo-commit", COMMIT)
        .with("content-type", "application/octet-stream");
    if request.path.ends_with(".json") {
        let blob = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
        let hash = hex(&blob.chain_update(bytes).finalize());
        return reply.with("etag", format!("\"{hash}\""));
    }
    let hash = hex(&Sha256::digest(bytes));
    reply
        .with("x-linked-etag", format!("\"{hash}\""))
        .with("x-linked-size", bytes.len())
}

fn send(mut stream: TcpStream, request: &Request, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let told = reply
        .headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("content-length"));
    if reply.length && !told {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(
            &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())],
        )?;
    }
    stream.flush()
}
