//! The three requests that a pull makes: list a repository, ask about a file, fetch its bytes.
//!
//! Redirects are followed here and not by the HTTP library, because what they carry matters: the
//! hub's first answer holds commit, hash and size, and the token must not reach another host.

use super::{
    Settings,
    address::{join, quote, same_origin, without_query},
    download::Failure,
    hash::Hash,
    name::{check_path, is_weights},
};
use anyhow::{Context, Result, anyhow, bail};
use std::{io::Read, time::Duration};
use ureq::{
    Agent, Body,
    http::{Method, Request, Response, StatusCode, Uri, header},
};

/// How long a connection may bring nothing before it counts as lost.
const SILENCE: Duration = Duration::from_secs(30);
/// Most bytes of a repository's listing.
const LISTING_LIMIT: u64 = 16 << 20;
const MAX_REDIRECTS: usize = 10;

/// What the hub says of a file.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    /// Path in the repository.
    pub file: String,
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// The content's hash.
    pub hash: Hash,
    /// Length in bytes.
    pub size: u64,
}

/// A connection to one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Uri,
    token: Option<String>,
}

impl Client {
    pub fn new(settings: &Settings) -> Result<Client> {
        let bad = || {
            format!(
                "HF_ENDPOINT is '{}': expected an address such as https://huggingface.co",
                settings.endpoint
            )
        };
        let origin: Uri = settings.endpoint.parse().with_context(bad)?;
        if origin.host().is_none_or(str::is_empty) {
            bail!(bad());
        }
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("gossamer/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Ok(Client {
            agent: config.into(),
            endpoint: settings.endpoint.clone(),
            origin,
            token: settings.token.clone(),
        })
    }

    /// The paths of all files of `repo` at `revision`.
    pub fn list(&self, repo: &str, revision: &str) -> Result<Vec<String>, Failure> {
        #[derive(serde::Deserialize)]
        struct Listing {
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!(
            "{}/api/models/{repo}/revision/{}",
            self.endpoint,
            quote(revision, "")
        );
        let what = format!("{repo} at revision {revision}");
        let mut response = self.follow(Method::GET, &url, &[], |_| false)?.response;
        self.expect_success(&response, repo, &what)?;
        let mut text = Vec::new();
        let body = response.body_mut().as_reader();
        body.take(LISTING_LIMIT + 1)
            .read_to_end(&mut text)
            .map_err(|e| Failure::lost(anyhow!("{url}: {e}")))?;
        let parsed: Result<Listing> = if text.len() as u64 > LISTING_LIMIT {
            Err(anyhow!("it is longer than {LISTING_LIMIT} bytes"))
        } else {
            serde_json::from_slice(&text).map_err(Into::into)
        };
        let told = parsed.map_err(|e| {
            Failure::Fatal(anyhow!(
                "{url} did not answer with a list of files: {e}{}",
                page(&response)
            ))
        })?;
        Ok(told.siblings.into_iter().map(|s| s.rfilename).collect())
    }

    /// Commit, hash and size of one file.
    pub fn head(&self, repo: &str, revision: &str, file: &str) -> Result<Remote, Failure> {
        check_path(file)?;
        let url = self.resolve_url(repo, revision, file);
        let what = format!("{file} in {repo} at revision {revision}");
        // The hub's own answer carries what we want, also when it redirects to a store.
        let has_hash = |r: &Response<Body>| text(r, "x-linked-etag").is_some();
        let Followed { response, commit } = self.follow(Method::HEAD, &url, &[], has_hash)?;
        if !response.status().is_redirection() {
            self.expect_success(&response, repo, &what)?;
        }
        self.remote(&response, commit, file)
            .map_err(|e| Failure::Fatal(e.context(url)))
    }

    fn remote(
        &self,
        response: &Response<Body>,
        commit: Option<String>,
        file: &str,
    ) -> Result<Remote> {
        let hex = |s: &str, digits| {
            s.len() == digits && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let commit = commit.filter(|c| hex(c, 40)).with_context(|| {
            format!(
                "the answer has no valid x-repo-commit header, so this is not a Hugging Face hub{}",
                page(response)
            )
        })?;
        let tag = text(response, "x-linked-etag")
            .or_else(|| text(response, "etag"))
            .unwrap_or_default();
        // Weights lie in the large-file store, which knows a stronger hash than git's.
        let hash = Hash::from_tag(&tag)
            .filter(|hash| matches!(hash, Hash::Sha256(_)) || !is_weights(file));
        let hash = hash.with_context(|| {
            format!(
                "the hub gives no sha256 for {file} (its tag is '{}'), so the download could not be checked",
                clip(&tag)
            )
        })?;
        let said = text(response, "x-linked-size")
            .or_else(|| text(response, "content-length"))
            .unwrap_or_default();
        let size = said
            .parse::<u64>()
            .ok()
            .filter(|&n| n > 0 && n <= i64::MAX as u64);
        let size = size.with_context(|| {
            format!(
                "the hub gives '{}' as the size of {file}: expected a number of bytes",
                clip(&said)
            )
        })?;
        Ok(Remote {
            file: file.to_string(),
            commit,
            hash,
            size,
        })
    }

    /// The file's bytes from `offset` on. Returns the body and the offset at which it really
    /// starts: 0 when the server can't resume.
    pub fn get(&self, repo: &str, remote: &Remote, offset: u64) -> Result<(Body, u64), Failure> {
        let url = self.resolve_url(repo, &remote.commit, &remote.file);
        let range = format!("bytes={offset}-");
        let headers: &[(&str, &str)] = if offset > 0 {
            &[("range", &range)]
        } else {
            &[]
        };
        let response = self.follow(Method::GET, &url, headers, |_| false)?.response;
        self.expect_success(&response, repo, &remote.file)?;
        let start =
            check_body(&response, remote, offset).map_err(|e| Failure::Fatal(e.context(url)))?;
        Ok((response.into_body(), start))
    }

    fn resolve_url(&self, repo: &str, revision: &str, file: &str) -> String {
        format!(
            "{}/{repo}/resolve/{}/{}",
            self.endpoint,
            quote(revision, ""),
            quote(file, "/")
        )
    }

    /// Sends a request and follows its redirects until `enough` or an answer that is none.
    fn follow(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        enough: impl Fn(&Response<Body>) -> bool,
    ) -> Result<Followed, Failure> {
        let mut at: Uri = url
            .parse()
            .map_err(|e| Failure::Fatal(anyhow!("{url} is not an address: {e}")))?;
        let mut commit = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method.clone()).uri(at.clone());
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(token) = self
                .token
                .as_ref()
                .filter(|_| same_origin(&at, &self.origin))
            {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request
                .body(())
                .map_err(|e| Failure::Fatal(anyhow!("{}: {e}", without_query(&at))))?;
            let response = self.agent.run(request).map_err(|e| failure(e, &at))?;
            commit = commit.or_else(|| text(&response, "x-repo-commit"));
            let redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirect || enough(&response) {
                return Ok(Followed { response, commit });
            }
            at = join(&at, text(&response, "location").as_deref()).map_err(Failure::Fatal)?;
        }
        Err(Failure::Fatal(anyhow!(
            "{url}: more than {MAX_REDIRECTS} redirects, the last to {}",
            without_query(&at)
        )))
    }

    /// Turns an answer that is no success into an error that says what to do.
    fn expect_success(
        &self,
        response: &Response<Body>,
        repo: &str,
        what: &str,
    ) -> Result<(), Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let code = text(response, "x-error-code").unwrap_or_default();
        let login = match self.token {
            None => "set HF_TOKEN to a token that may read it (Settings, Access Tokens on the hub)",
            Some(_) => "the token in HF_TOKEN may not read it",
        };
        let page = format!("{}/{repo}", self.endpoint);
        let told = match (status.as_u16(), code.as_str()) {
            (_, "GatedRepo") => {
                anyhow!("{repo} is gated: accept its terms at {page}, then {login}")
            }
            (_, "EntryNotFound") => {
                anyhow!("the hub has no {what}; its files are listed at {page}/tree/main")
            }
            (_, "RevisionNotFound") => anyhow!("the hub has no {what}: no such revision"),
            (401 | 404, "RepoNotFound") => {
                anyhow!("the hub has no repository {repo}, or hides it: check the name, or {login}")
            }
            (401, _) => anyhow!("the hub wants a login for {what} (401): {login}"),
            (403, _) => {
                anyhow!("the hub refuses {what} (403): {login}, or accept its terms at {page}")
            }
            (404 | 410, _) => anyhow!("the hub has no {what} ({status}); look at {page}"),
            (416, _) => {
                anyhow!("the server refuses to resume {what} where the last attempt ended (416)")
            }
            _ => anyhow!("the server answered {status} for {what}"),
        };
        if matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
        ) || status.is_server_error()
        {
            let wait = text(response, "retry-after").and_then(|s| s.trim().parse().ok());
            return Err(Failure::Lost(
                told,
                wait.map(|s: u64| Duration::from_secs(s.min(60))),
            ));
        }
        Err(Failure::Fatal(told))
    }
}

struct Followed {
    response: Response<Body>,
    /// The first `x-repo-commit` on the way: a store that is redirected to has none.
    commit: Option<String>,
}

/// Checks that the answer to a request for the bytes from `offset` can be those bytes.
fn check_body(response: &Response<Body>, remote: &Remote, offset: u64) -> Result<u64> {
    let file = &remote.file;
    if let Some(kind) =
        text(response, "content-type").filter(|k| k.to_ascii_lowercase().starts_with("text/html"))
    {
        bail!(
            "the server sent a web page ({}) in place of {file}: is there a login page or a proxy in between?",
            clip(&kind)
        );
    }
    if let Some(coding) =
        text(response, "content-encoding").filter(|c| !c.eq_ignore_ascii_case("identity"))
    {
        bail!(
            "the server sent {file} encoded as '{}', which was not asked for",
            clip(&coding)
        );
    }
    let start = match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let told = text(response, "content-range").unwrap_or_default();
            let expected = format!("bytes {offset}-{}/{}", remote.size - 1, remote.size);
            if told.trim() != expected {
                bail!(
                    "the server sent the wrong part of {file}: Content-Range '{}', expected '{expected}'",
                    clip(&told)
                );
            }
            offset
        }
        _ => 0,
    };
    if let Some(length) = text(response, "content-length") {
        let expected = remote.size - start;
        if length.trim().parse() != Ok(expected) {
            bail!(
                "the server would send {} bytes of {file}, expected {expected} (the hub gives its size as {})",
                clip(&length),
                remote.size
            );
        }
    }
    Ok(start)
}

/// A transport error: lost connections are worth another attempt, refusals are not.
fn failure(error: ureq::Error, at: &Uri) -> Failure {
    use ureq::Error as E;
    let fatal = matches!(
        error,
        E::BadUri(_)
            | E::Http(_)
            | E::Tls(_)
            | E::Rustls(_)
            | E::InvalidProxyUrl
            | E::LargeResponseHeader(..)
    );
    let told = anyhow!("{}: {error}", without_query(at));
    if fatal {
        Failure::Fatal(told)
    } else {
        Failure::lost(told)
    }
}

fn text(response: &Response<Body>, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_string())
}

/// For messages: at most 80 characters, none of which moves the cursor.
fn clip(text: &str) -> String {
    text.chars().take(80).filter(|c| !c.is_control()).collect()
}

/// Names a web page as such, for an answer that should have been something else.
fn page(response: &Response<Body>) -> &'static str {
    let html = text(response, "content-type").is_some_and(|k| k.starts_with("text/html"));
    if html {
        " (a web page came: is there a login page or a proxy in between?)"
    } else {
        ""
    }
}
