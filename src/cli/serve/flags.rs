//! The flags of `serve`, and what they mean together.

use super::super::{
    Usage,
    model::{BATCH_TOKENS, Common, up_to},
};
use crate::server::{Settings, Tls};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::{
    fs,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

/// More than any system has sockets.
const MOST_CONNECTIONS: usize = 1 << 24;

/// What `serve` reads.
#[derive(clap::Args, Debug, Clone)]
#[command(after_help = HELP)]
pub struct Args {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, short = 'p', default_value_t = 3000)]
    pub port: u16,
    /// Read settings from a TOML file: each flag's name without the dashes is a key
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A name for the default model, in place of its own; may be given several times, the first
    /// stands in answers
    #[arg(long, value_name = "NAME", help_heading = "Models")]
    pub served_model_name: Vec<String>,
    /// Serve this model too, by this name, loaded when it is first asked for; may be given several
    /// times. Without --model the first is the default model
    #[arg(long, value_name = "NAME=FILE", value_parser = named_model, help_heading = "Models")]
    pub models: Vec<(String, String)>,
    /// Memory for loaded models together, such as 64GB; past it the one idle longest is unloaded.
    /// Default: no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Models")]
    pub model_memory: Option<u64>,
    /// Load all models at the start
    #[arg(long, help_heading = "Models")]
    pub preload: bool,
    /// The date in system messages. Default: today, which changes every prompt at midnight
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = super::super::run::date, help_heading = "Models")]
    pub date: Option<String>,

    /// Requests that run at once, up to 256
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = up_to::<{ BATCH_TOKENS / 2 }>, help_heading = "Scheduling")]
    pub max_seqs: usize,
    /// Requests that wait; past it clients are told to try again (429)
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        help_heading = "Scheduling"
    )]
    pub max_waiting: usize,
    /// Memory for snapshots of the sliding windows, by which cached prompts are continued: the default
    /// is enough for some ten conversations of gpt-oss-20b at once. With MLX: for whole beginnings that are kept
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = bytes, help_heading = "Scheduling")]
    pub cache_bytes: u64,
    /// Compute every prompt from its start
    #[arg(long, help_heading = "Scheduling")]
    pub no_prefix_cache: bool,
    /// Refuse to start unless the same request always gives the same bytes, whatever else runs. On
    /// the CPU that is always so
    #[arg(long, help_heading = "Scheduling")]
    pub deterministic: bool,

    /// A key of which requests must bring one; may be given several times
    #[arg(long, value_name = "KEY", help_heading = "Access")]
    pub api_key: Vec<String>,
    /// A file of such keys, one a line
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub api_key_file: Option<PathBuf>,
    /// Without a key: a name, besides localhost, by which clients may call this server
    #[arg(long, value_name = "HOST", help_heading = "Access")]
    pub allowed_hosts: Vec<String>,
    /// Origin of web pages, besides localhost's, that may read answers
    #[arg(long, value_name = "ORIGIN", help_heading = "Access")]
    pub cors_origin: Vec<String>,
    /// Listen beyond this machine without asking for a key
    #[arg(long, help_heading = "Access")]
    pub insecure: bool,
    /// TLS certificate, PEM, with --tls-key
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub tls_cert: Option<PathBuf>,
    /// TLS private key, PEM
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub tls_key: Option<PathBuf>,

    /// Requests a minute for each key, or each peer without keys, such as 60/min
    #[arg(long, value_name = "N/min", value_parser = rate, help_heading = "Limits")]
    pub rate_limit: Option<u32>,
    /// Time for an answer; past it the answer ends with finish_reason length. Default: no limit
    #[arg(long, value_name = "TIME", value_parser = some_time, help_heading = "Limits")]
    pub request_timeout: Option<Duration>,
    /// Time to end when the server is told to stop: answers under way may be completed, but for the last
    /// seconds, in which they are ended
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, help_heading = "Limits")]
    pub drain_timeout: Duration,
    /// Silence in a stream after which something is sent to keep it open
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time, help_heading = "Limits")]
    pub keep_alive: Duration,
    /// Size of a request's body
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = some_bytes, help_heading = "Limits")]
    pub max_body: u64,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = up_to::<MOST_CONNECTIONS>, help_heading = "Limits")]
    pub max_connections: usize,

    /// Form of the log on stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text, help_heading = "Log")]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace, also for a module: info,gossamer::request=warn
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Log"
    )]
    pub log_level: String,

    /// Which model, how and with what room.
    #[command(flatten)]
    pub common: Common,
}

/// Forms of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

const HELP: &str = "\
Examples:
  gossamer serve                                    the small demo model inside this program
  gossamer serve --model gpt-oss-20b                after `gossamer pull gpt-oss-20b`
  gossamer serve --models small=a.gguf --models large=b.gguf --model-memory 64GB
  gossamer serve --host 0.0.0.0 --api-key \"$KEY\"    for other machines too
  GOSSAMER_PORT=8080 gossamer serve --config gossamer.toml

  curl http://localhost:3000/v1/chat/completions -H \"Content-Type: application/json\" \\
       -d '{\"messages\":[{\"role\":\"user\",\"content\":\"What is 17 + 25?\"}]}'

Clients of OpenAI's API need the base URL http://localhost:3000/v1 and nothing else.

Every flag can be set by a variable (GOSSAMER_API_KEY for --api-key; lists are separated by
commas) and by the file of --config (`api-key = [\"…\"]`). Flags come before variables, variables
before the file.

SIGTERM or Ctrl-C ends the server when its answers are complete, at the latest after
--drain-timeout; a second one ends it at once (exit code 130).";

fn named_model(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), file.to_owned()))
        }
        _ => Err("expected NAME=FILE, such as small=/models/gpt-oss-20b.gguf".into()),
    }
}

/// A whole number with a unit, in what `scale` counts the units in.
fn scaled(text: &str, scale: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let scale = scale(&unit.trim().to_ascii_lowercase())?;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// `4096`, `256MiB`, `64GB`, `16M`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let bytes = scaled(text, |unit| match unit {
        "" | "b" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "t" | "tib" => Some(1 << 40),
        "kb" => Some(1000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "tb" => Some(1_000_000_000_000),
        _ => None,
    });
    bytes.ok_or_else(|| "expected a size such as 256MiB, 64GB or 4096".into())
}

/// As [`bytes`], but not 0.
fn some_bytes(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("must be more than 0".into()),
        bytes => Ok(bytes),
    }
}

/// `30`, `30s`, `500ms`, `5m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    // A year is longer than any of these can mean.
    const MOST: u64 = 366 * 24 * 3_600_000;
    let milliseconds = scaled(text, |unit| match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    });
    match milliseconds {
        Some(time @ 0..=MOST) => Ok(Duration::from_millis(time)),
        _ => Err("expected a time such as 30s, 500ms, 5m or 1h".into()),
    }
}

/// As [`time`], but not 0.
pub fn some_time(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("must be more than 0".into()),
        time => Ok(time),
    }
}

fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/min").unwrap_or(text);
    match number.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected requests a minute, such as 60/min".into()),
    }
}

impl Args {
    /// What the server is told.
    ///
    /// # Errors
    /// Flags that exclude each other, and a file of keys that can't be read.
    pub fn settings(&self) -> Result<Settings> {
        let mut api_keys = self.api_key.clone();
        if let Some(path) = &self.api_key_file {
            let name = || format!("--api-key-file {}", path.display());
            let text = fs::read_to_string(path).with_context(name)?;
            let lines = text.lines().map(str::trim);
            let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            let before = api_keys.len();
            api_keys.extend(keys.map(str::to_owned));
            if api_keys.len() == before {
                // Nobody means to open the door by an empty file.
                return Err(Usage(format!("{}: holds no key", name())).into());
            }
        }
        let mut allowed_hosts = self.allowed_hosts.clone();
        if self.host_name().parse::<IpAddr>().is_err() {
            // A name to listen on is one to be called by.
            allowed_hosts.push(self.host.clone());
        }
        Ok(Settings {
            api_keys,
            max_body_bytes: usize::try_from(self.max_body).unwrap_or(usize::MAX),
            keep_alive: self.keep_alive.max(Duration::from_millis(100)),
            date: self.date.clone(),
            seed: self.common.seed,
            allowed_hosts,
            open_to_network: self.insecure,
            cors_origins: self.cors_origin.clone(),
            rate_limit: self.rate_limit,
            max_connections: self.max_connections,
            request_timeout: self.request_timeout,
            drain_timeout: self.drain_timeout,
            model_memory: self.model_memory,
            ..Settings::default()
        })
    }

    /// `--host`, without the brackets of an IPv6 address.
    fn host_name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Where to listen.
    ///
    /// # Errors
    /// A host that has no address, or one beyond this machine without a key.
    pub fn addresses(&self, keys: bool) -> Result<Vec<SocketAddr>> {
        let found = (self.host_name(), self.port).to_socket_addrs();
        let found: Vec<SocketAddr> = found
            .with_context(|| format!("--host {}", self.host))?
            .collect();
        let open = found.iter().find(|a| !a.ip().to_canonical().is_loopback());
        if let Some(open) = open
            && !keys
            && !self.insecure
        {
            let text = format!(
                "--host {}: {} can be reached from other machines. Ask for a key (--api-key KEY), \
                 or say that none is needed (--insecure)",
                self.host,
                open.ip()
            );
            return Err(Usage(text).into());
        }
        Ok(found)
    }

    /// Certificate and key, both or none.
    ///
    /// # Errors
    /// One without the other.
    pub fn tls(&self) -> Result<Option<Tls>> {
        match (self.tls_cert.clone(), self.tls_key.clone()) {
            (Some(cert), Some(key)) => Ok(Some(Tls { cert, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(Usage("--tls-cert needs --tls-key".into()).into()),
            (None, Some(_)) => Err(Usage("--tls-key needs --tls-cert".into()).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_rates_are_read() {
        for (text, size) in [
            ("0", 0),
            ("4096", 4096),
            ("256MiB", 256 << 20),
            ("16M", 16 << 20),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        assert_eq!(bytes("64GB"), Ok(64_000_000_000));
        assert_eq!(bytes("2 gib"), Ok(2 << 30));
        for text in ["", "MiB", "-1", "1.5GB", "99999999999TB", "1x"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        for (text, ms) in [
            ("30", 30_000),
            ("30s", 30_000),
            ("500ms", 500),
            ("5m", 300_000),
        ] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1y", "18446744073709551615h", "10000h"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert!(some_bytes("0").is_err() && some_time("0ms").is_err());
        assert_eq!(some_bytes("1k"), Ok(1024));
        assert_eq!(rate("60/min"), Ok(60));
        assert_eq!(rate("5"), Ok(5));
        assert!(rate("0").is_err() && rate("5/s").is_err());
        assert_eq!(named_model("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(named_model("a=").is_err() && named_model("a").is_err());
    }
}
