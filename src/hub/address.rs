//! Addresses: joined, compared and quoted. TLS, once used, is never left.

use anyhow::{Context, Result, bail};
use ureq::http::Uri;

/// Whether both have the same scheme, host and port.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| {
        u.port_u16().unwrap_or(if u.scheme_str() == Some("https") {
            443
        } else {
            80
        })
    };
    let host = |u: &Uri| u.host().unwrap_or("").to_ascii_lowercase();
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// The address that a redirect's `Location` names, seen from `base`.
pub(super) fn join(base: &Uri, location: Option<&str>) -> Result<Uri> {
    let from = without_query(base);
    let location = location.with_context(|| format!("{from}: a redirect without a Location"))?;
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |a| a.as_str());
    let folder = base
        .path()
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder);
    let absolute = match location {
        l if l.contains("://") => l.to_string(),
        l if l.starts_with("//") => format!("{scheme}:{l}"),
        l if l.starts_with('/') => format!("{scheme}://{authority}{l}"),
        l => format!("{scheme}://{authority}{folder}/{l}"),
    };
    let to: Uri = absolute
        .parse()
        .with_context(|| format!("{from}: a redirect to an address that is none"))?;
    match to.scheme_str() {
        Some("https") => Ok(to),
        Some("http") if scheme == "http" => Ok(to),
        _ => bail!(
            "{from}: refusing a redirect from {scheme} to {}",
            without_query(&to)
        ),
    }
}

/// For messages: a store's signed address holds secrets in its query.
pub(super) fn without_query(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("");
    format!("{scheme}://{}{}", uri.host().unwrap_or(""), uri.path())
}

/// Percent-encodes everything but letters, digits, `-._~` and what `keep` holds.
pub(super) fn quote(text: &str, keep: &str) -> String {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || keep.as_bytes().contains(&b);
    text.bytes()
        .map(|b| {
            if plain(b) {
                (b as char).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_join_and_never_leave_tls() {
        let base: Uri = "https://h.co:8443/a/b?x=1".parse().unwrap();
        let to = |l: &str| {
            join(&base, Some(l))
                .map(|u| u.to_string())
                .map_err(|e| e.to_string())
        };
        assert_eq!(
            to("https://s.io/x?sig=1"),
            Ok("https://s.io/x?sig=1".into())
        );
        assert_eq!(to("/c"), Ok("https://h.co:8443/c".into()));
        assert_eq!(to("c"), Ok("https://h.co:8443/a/c".into()));
        assert_eq!(to("//s.io/x"), Ok("https://s.io/x".into()));
        assert!(to("http://s.io/x?secret").unwrap_err().contains("refusing"));
        assert!(!to("http://s.io/x?secret").unwrap_err().contains("secret"));
        assert!(
            to("file:///etc/passwd").is_err()
                && to("ht tp://x").is_err()
                && join(&base, None).is_err()
        );
    }

    #[test]
    fn origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://h.co/x", "https://H.co:443"));
        assert!(!same("http://h.co/x", "https://h.co"));
        assert!(!same("https://h.co:444/x", "https://h.co"));
        assert!(!same("https://h.co.evil/x", "https://h.co"));
    }

    #[test]
    fn quote_keeps_only_what_is_plain() {
        assert_eq!(quote("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(quote("a b/ü.gguf", "/"), "a%20b/%C3%BC.gguf");
    }
}
