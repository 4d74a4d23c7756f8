//! `gossamer serve` as a process of its own, behind a real socket.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

/// Longer than the program may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; killed when dropped.
pub struct Program {
    child: Child,
    /// What it says, and what of it was heard.
    lines: Mutex<mpsc::Receiver<String>>,
    said: Vec<String>,
    /// `http://127.0.0.1:PORT`
    pub url: String,
}

impl Program {
    /// Starts it on a free port, with the demo model unless `args` say otherwise; it is ready.
    pub fn start(args: &[&str]) -> Program {
        Program::start_with(args, |_| ())
    }

    /// The same, with what `change` makes of its command.
    pub fn start_with(args: &[&str], change: impl FnOnce(&mut Command)) -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
        command.args(["serve", "--port", "0"]).args(args);
        change(&mut command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        // Whichever stream names the address; both are read to the end, so that it never waits.
        let (send, lines) = mpsc::channel();
        let out: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("piped"));
        let err: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("piped"));
        for stream in [out, err] {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = send.send(line);
                }
            });
        }
        drop(send);
        let mut said = Vec::new();
        let url = loop {
            let line = lines.recv_timeout(PATIENCE);
            let line =
                line.unwrap_or_else(|_| panic!("no address from gossamer serve, but: {said:?}"));
            said.push(line.clone());
            if let Some(at) = line.find("http://127.0.0.1:") {
                let end = line[at + 17..].find(|c: char| !c.is_ascii_digit());
                break line[at..end.map_or(line.len(), |end| at + 17 + end)].to_owned();
            }
        };
        let program = Program {
            child,
            lines: Mutex::new(lines),
            said,
            url,
        };
        let start = Instant::now();
        while program.get("/ready").0 != 200 {
            assert!(start.elapsed() < PATIENCE, "not ready after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        program
    }

    /// Status and text.
    pub fn get(&self, path: &str) -> (u16, String) {
        let request = agent().get(format!("{}{path}", self.url));
        let mut response = request.call().unwrap_or_else(|e| panic!("{path}: {e}"));
        let text = response.body_mut().read_to_string().expect("text");
        (response.status().as_u16(), text)
    }

    /// Status and text of what a JSON body gets.
    pub fn post(&self, path: &str, body: &Value) -> (u16, String) {
        self.post_as("", path, body)
    }

    /// The same for a request with that id, if it is not empty.
    pub fn post_as(&self, id: &str, path: &str, body: &Value) -> (u16, String) {
        let request = agent().post(format!("{}{path}", self.url));
        let mut request = request.header("content-type", "application/json");
        if !id.is_empty() {
            request = request.header("x-request-id", id);
        }
        let response = request.send(body.to_string());
        let mut response = response.unwrap_or_else(|e| panic!("{path}: {e}"));
        let text = response.body_mut().read_to_string().expect("text");
        (response.status().as_u16(), text)
    }

    /// Opens a stream of events.
    pub fn stream(&self, path: &str, body: &Value) -> Result<Stream, String> {
        let request = agent().post(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json");
        let response = request.send(body.to_string()).map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if status != 200 {
            return Err(format!(
                "{status} {}",
                body.read_to_string().unwrap_or_default()
            ));
        }
        Ok(Stream(BufReader::new(Box::new(body.into_reader()))))
    }

    /// A value of `/metrics`, summed over its labels; 0 if it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let line = |line: &str| {
            let (key, value) = line.rsplit_once(' ')?;
            (key.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
        };
        text.lines().filter_map(line).sum()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let pid = sysinfo::Pid::from_u32(self.id());
        let mut system = sysinfo::System::new();
        system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[pid]), true);
        system.process(pid).expect("it runs").memory()
    }

    /// Asks it to end, as service managers do.
    pub fn terminate(&self) {
        let id = self.id().to_string();
        let kill = Command::new("kill").args(["-TERM", &id]).status();
        assert!(kill.expect("kill runs").success());
    }

    /// Ends it; all that it said.
    pub fn end(mut self) -> Vec<String> {
        self.terminate();
        self.child.wait().expect("a child");
        let mut said = std::mem::take(&mut self.said);
        said.extend(self.lines.get_mut().expect("no panic").iter());
        said
    }

    /// Waits until it has ended.
    pub fn wait(mut self, patience: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(
                start.elapsed() < patience,
                "still running after {patience:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client without limits; a status is no error.
fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.build().new_agent()
}

/// Server-sent events as they come. Dropping it closes the connection.
pub struct Stream(BufReader<Box<dyn Read + Send + Sync>>);

impl Stream {
    /// The next `data:`; none at the end.
    ///
    /// # Errors
    /// When the connection breaks off.
    pub fn next(&mut self) -> Result<Option<String>, String> {
        let mut line = String::new();
        loop {
            line.clear();
            match self.0.read_line(&mut line) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Ok(Some(data.trim_end().to_owned()));
            }
        }
    }
}
