//! The server over real sockets: streams, clients that go away or never get on, the orderly end.

use super::puppet::Puppet;
use gossamer::{
    engine::FinishReason,
    server::{App, Listener, Settings, Tls, serve},
};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of a puppet on a free port.
struct Server {
    app: Arc<App>,
    puppet: Arc<Puppet>,
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    fn start(settings: Settings) -> Server {
        Server::start_with(settings, None)
    }

    fn start_with(settings: Settings, tls: Option<Tls>) -> Server {
        let puppet = Puppet::new();
        let tokenizer = super::puppet::tokenizer();
        let app = App::for_engine("puppet", puppet.clone(), tokenizer, settings).expect("a server");
        let listener = Listener::bind(&[SocketAddr::from(([127, 0, 0, 1], 0))], tls);
        let listener = listener.expect("a free port");
        let address = listener.address().expect("an address");
        let (end, ended) = oneshot::channel();
        let ended = async { drop(ended.await) };
        Server {
            served: tokio::spawn(serve(app.clone(), listener, ended)),
            end: Some(end),
            address,
            puppet,
            app,
        }
    }

    async fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address)
            .await
            .expect("a connection");
        let read = String::new();
        Connection { stream, read }
    }

    /// A connection with a streamed completion under way, whose first text has arrived.
    async fn streaming(&self) -> (Connection, super::puppet::Asked) {
        let mut client = self.connect().await;
        let body = "{\"prompt\":\"Hello\",\"stream\":true}";
        client.post("/v1/completions", body).await;
        let asked = self.puppet.next().await;
        asked.admit();
        asked.say("one");
        client.read_until("one").await;
        (client, asked)
    }

    fn end(&mut self) {
        let end = self.end.take().expect("ended once");
        end.send(()).expect("the server waits for it");
    }

    async fn ended(self) {
        let served = timeout(PATIENCE, self.served).await.expect("an end");
        served.expect("no panic").expect("no error");
    }
}

struct Connection {
    stream: TcpStream,
    read: String,
}

impl Connection {
    async fn send(&mut self, text: &str) {
        let sent = self.stream.write_all(text.as_bytes()).await;
        sent.expect("a connection that is open");
    }

    async fn post(&mut self, path: &str, body: &str) {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    }

    async fn get(&mut self, path: &str) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await;
    }

    /// Reads on until `text` has come.
    async fn read_until(&mut self, text: &str) {
        while !self.read.contains(text) {
            let more = self.read_more().await;
            assert!(more, "the connection ended before {text:?}: {}", self.read);
        }
    }

    /// Reads to the end of the connection; everything that came over it.
    async fn read_to_end(mut self) -> String {
        while self.read_more().await {}
        self.read
    }

    async fn read_more(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let read = timeout(PATIENCE, self.stream.read(&mut bytes)).await;
        match read.expect("an answer in time") {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.read += &String::from_utf8_lossy(&bytes[..n]);
                true
            }
        }
    }
}

#[tokio::test]
async fn answers_under_way_are_completed_at_the_end() {
    let mut server = Server::start(Settings::default());
    let (client, asked) = server.streaming().await;
    let mut idle = server.connect().await;
    idle.get("/ready").await;
    idle.read_until("\"ok\"").await;
    server.end();
    // Idle connections are closed, and new ones are not taken.
    assert!(!idle.read_to_end().await.contains("503"));
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    asked.say(" two");
    asked.finish(FinishReason::Stop);
    let answer = client.read_to_end().await;
    assert!(answer.contains("two"), "{answer}");
    assert!(answer.contains("\"finish_reason\":\"stop\""), "{answer}");
    assert!(answer.contains("data: [DONE]\n\n"), "{answer}");
    server.ended().await;
}

#[tokio::test]
async fn answers_that_take_too_long_at_the_end_get_a_last_event() {
    let mut server = Server::start(Settings {
        drain_timeout: Duration::from_millis(50),
        ..Settings::default()
    });
    let (client, asked) = server.streaming().await;
    let started = Instant::now();
    server.end();
    let answer = client.read_to_end().await;
    assert!(answer.contains("\"server_shutting_down\""), "{answer}");
    assert!(answer.contains("data: [DONE]\n\n"), "{answer}");
    timeout(PATIENCE, asked.events.closed())
        .await
        .expect("cancelled");
    server.ended().await;
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn requests_on_open_connections_are_refused_while_draining() {
    let server = Server::start(Settings::default());
    server
        .app
        .life
        .enter(gossamer::server::state::Phase::Draining);
    for (path, says) in [
        ("/v1/completions", "server_shutting_down"),
        ("/tokenize", "503"),
    ] {
        let mut client = server.connect().await;
        client.post(path, "{\"prompt\":\"Hello\"}").await;
        client.read_until(says).await;
        assert!(
            client.read.to_lowercase().contains("retry-after"),
            "{}",
            client.read
        );
    }
    let mut client = server.connect().await;
    client.get("/ready").await;
    client.read_until("draining").await;
    assert!(client.read.starts_with("HTTP/1.1 503"), "{}", client.read);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request() {
    let server = Server::start(Settings::default());
    let (client, asked) = server.streaming().await;
    drop(client);
    timeout(PATIENCE, asked.events.closed())
        .await
        .expect("cancelled");
    // Before the first event too: while it waits for its turn.
    let mut waiting = server.connect().await;
    waiting
        .post("/v1/completions", "{\"prompt\":\"Hello\"}")
        .await;
    let asked = server.puppet.next().await;
    drop(waiting);
    timeout(PATIENCE, asked.events.closed())
        .await
        .expect("cancelled");
    let mut client = server.connect().await;
    client.get("/metrics").await;
    client
        .read_until("vllm:time_to_first_token_seconds_count")
        .await;
    let aborted = "vllm:request_success_total{model_name=\"puppet\",finished_reason=\"abort\"} 2";
    assert!(client.read.contains(aborted), "{}", client.read);
}

#[tokio::test]
async fn silent_streams_are_kept_open() {
    let server = Server::start(Settings {
        keep_alive: Duration::from_millis(20),
        ..Settings::default()
    });
    let (mut client, asked) = server.streaming().await;
    client.read_until(": ping\n\n").await;
    asked.finish(FinishReason::Length);
    client.read_until("[DONE]").await;
}

#[tokio::test]
async fn an_answer_past_its_time_ends_as_at_its_limit() {
    let server = Server::start(Settings {
        request_timeout: Some(Duration::from_millis(100)),
        ..Settings::default()
    });
    let mut client = server.connect().await;
    client
        .post("/v1/completions", "{\"prompt\":\"Hello\"}")
        .await;
    let asked = server.puppet.next().await;
    asked.admit();
    asked.say("one");
    while !asked.request.cancel.is_cancelled() {
        tokio::task::yield_now().await;
    }
    asked.finish(FinishReason::Cancelled);
    client.read_until("\"finish_reason\":\"length\"").await;
    // One that was never admitted is told to come again.
    let mut client = server.connect().await;
    client
        .post("/v1/completions", "{\"prompt\":\"Hello\"}")
        .await;
    let _asked = server.puppet.next().await;
    client.read_until("rate_limit_exceeded").await;
    assert!(client.read.starts_with("HTTP/1.1 429"), "{}", client.read);
}

#[tokio::test]
async fn clients_that_never_finish_a_request_are_cut_off() {
    let server = Server::start(Settings {
        header_timeout: Duration::from_millis(100),
        body_timeout: Duration::from_millis(100),
        ..Settings::default()
    });
    // No byte, half a line, headers without an end: the connection is closed.
    for begun in [
        "",
        "POST /v1",
        "GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
    ] {
        let mut client = server.connect().await;
        client.send(begun).await;
        client.read_to_end().await;
    }
    let mut client = server.connect().await;
    client
        .send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        .await;
    client.read_until("HTTP/1.1 408").await;
    // Headers without bound are refused, not collected.
    let mut client = server.connect().await;
    let long = format!("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    let _ = client.stream.write_all(long.as_bytes()).await;
    assert!(!client.read_to_end().await.contains("200 OK"));
}

#[tokio::test]
async fn refusals_reach_clients_that_still_write() {
    let server = Server::start(Settings {
        api_keys: vec!["k".into()],
        max_body_bytes: 4 << 20,
        ..Settings::default()
    });
    for (path, key, body, status) in [
        ("/v1/completions", "wrong", 6 << 20, "401"),
        ("/v1/completions", "k", 6 << 20, "413"),
        ("/nothing", "k", 3 << 20, "404"),
        ("/v1/models", "k", 3 << 20, "405"),
    ] {
        let mut client = server.connect().await;
        client
            .send(&format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\
                 Content-Length: {body}\r\n\r\n"
            ))
            .await;
        // All of it is written before anything is read, as simple clients do.
        client.send(&"x".repeat(body)).await;
        client.read_until(&format!("HTTP/1.1 {status}")).await;
        client.read_until("\r\n\r\n{\"error\"").await;
    }
    // Who asks for leave to send is not given it.
    let mut client = server.connect().await;
    client
        .send(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\
             Content-Length: 1000\r\n\r\n",
        )
        .await;
    client.read_until("HTTP/1.1 401").await;
    assert!(!client.read.contains("100 Continue"), "{}", client.read);
}

#[tokio::test]
async fn an_address_has_its_rate_also_without_a_key() {
    let server = Server::start(Settings {
        api_keys: vec!["k".into()],
        rate_limit: Some(3),
        ..Settings::default()
    });
    let ask = async |key: &str| {
        let mut client = server.connect().await;
        client
            .send(&format!(
                "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
            ))
            .await;
        client.read_until("\r\n\r\n").await;
        client.read[9..12].to_owned()
    };
    // Guessing ends soon, and does no harm to those with a key.
    let mut found = Vec::new();
    for guess in ["a", "b", "c", "d"] {
        found.push(ask(guess).await);
    }
    assert_eq!(found, ["401", "401", "401", "429"]);
    assert_eq!(ask("k").await, "200");
}

#[tokio::test]
async fn connections_are_bounded() {
    let server = Server::start(Settings {
        max_connections: 2,
        ..Settings::default()
    });
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = server.connect().await;
        client.get("/health").await;
        client.read_until("ok").await;
        open.push(client);
    }
    let mut third = server.connect().await;
    let _ = third
        .stream
        .write_all(b"GET /health HTTP/1.1\r\n\r\n")
        .await;
    assert_eq!(third.read_to_end().await, "");
    drop(open);
    // Their places are free again, as soon as the server has noticed.
    loop {
        let mut client = server.connect().await;
        let _ = client
            .stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await;
        if client.read_to_end().await.contains("200 OK") {
            break;
        }
    }
}

/// For `localhost`, made by `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes
/// -keyout key.pem -out cert.pem -days 36500 -subj "/CN=gossamer test" -addext
/// "subjectAltName=DNS:localhost,IP:127.0.0.1" -addext "basicConstraints=critical,CA:FALSE"`.
fn tls(name: &str) -> PathBuf {
    super::common::root().join("tests/server/tls").join(name)
}

#[tokio::test]
async fn tls_by_certificate_and_key() {
    let files = Tls {
        cert: tls("cert.pem"),
        key: tls("key.pem"),
    };
    let server = Server::start_with(Settings::default(), Some(files));
    let url = format!("https://localhost:{}/health", server.address.port());
    let pem = std::fs::read(tls("cert.pem")).expect("the certificate");
    let get = move || {
        use ureq::tls::{Certificate, RootCerts, TlsConfig};
        let certificate = Certificate::from_pem(&pem).expect("PEM").to_owned();
        let roots = RootCerts::Specific(Arc::new(vec![certificate]));
        let tls = TlsConfig::builder().root_certs(roots).build();
        let agent = ureq::Agent::config_builder().tls_config(tls).build();
        let mut answer = agent.new_agent().get(&url).call().expect("an answer");
        answer.body_mut().read_to_string().expect("text")
    };
    let text = tokio::task::spawn_blocking(get).await.expect("no panic");
    assert_eq!(text, "{\"status\":\"ok\"}");
    // Plain HTTP gets no answer there.
    let mut plain = server.connect().await;
    plain.get("/health").await;
    assert!(!plain.read_to_end().await.contains("200 OK"));
}

#[test]
fn wrong_tls_files_are_named() {
    for (cert, key, says) in [
        ("none.pem", "key.pem", "none.pem"),
        ("cert.pem", "none.pem", "none.pem"),
        ("key.pem", "key.pem", "--tls-cert"),
        ("cert.pem", "cert.pem", "--tls-key"),
    ] {
        let files = Tls {
            cert: tls(cert),
            key: tls(key),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = Listener::bind(&[address], Some(files)).map(drop);
        let error = format!("{:#}", bound.expect_err("no such TLS"));
        assert!(error.contains(says), "{cert} {key}: {error}");
    }
}
