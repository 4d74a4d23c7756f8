//! What a pull must refuse: wrong parts, flipped bytes, lies, answers that are no file.

use crate::{
    fresh_bytes, incomplete, is_body, is_head, one_file, pull,
    server::{Hub, Reply, Request, Twist},
    tree,
};
use gossamer::hub::{self, Spec};

/// A hub that answers HEAD with this header instead of the right one.
fn head_says(name: &'static str, value: impl ToString) -> Twist {
    let value = value.to_string();
    Box::new(move |r, _, right| {
        if is_head(r) {
            right.with(name, &value)
        } else {
            right
        }
    })
}

/// Expects that a pull fails with `words` in its error and leaves nothing in the cache.
fn refused(
    twist: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
    words: &[&str],
) {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(one_file(100_000).0, twist);
    let told = pull(&hub, cache.path(), "owner/name").unwrap_err();
    for word in words {
        assert!(told.contains(word), "expected '{word}' in: {told}");
    }
    assert_eq!(
        tree(cache.path())
            .iter()
            .filter(|f| !f.ends_with(".incomplete"))
            .count(),
        0,
        "{told}"
    );
    for file in tree(cache.path()) {
        assert_eq!(
            std::fs::metadata(cache.path().join(&file)).unwrap().len(),
            0,
            "{file} kept after: {told}"
        );
    }
    assert_eq!(
        hub::find_in(cache.path(), &Spec::parse("owner/name").unwrap(), None).unwrap(),
        None
    );
}

#[test]
fn a_wrong_part_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let (files, _) = one_file(400_000);
    let hub = Hub::start(files, |request, before, right| match before {
        0 if is_body(request) => right.cut(150_000),
        _ if is_body(request) => right.with("content-range", "bytes 0-399999/400000"),
        _ => right,
    });
    let told = pull(&hub, cache.path(), "owner/name").unwrap_err();
    assert!(
        told.contains("wrong part") && told.contains("150000-399999/400000"),
        "{told}"
    );
    // A part where the whole was asked for, and no word on which part.
    refused(
        |r, _, right| {
            if is_body(r) {
                Reply {
                    status: 206,
                    ..right
                }
            } else {
                right
            }
        },
        &["wrong part"],
    );
}

#[test]
fn a_flipped_byte_is_refused_and_the_cache_left_clean() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(500_000);
    let at = fresh_bytes(2).iter().fold(0, |n, &b| n * 256 + b as usize) * 7;
    let hub = Hub::start(files, move |request, before, mut right| {
        if is_body(request) && before == 0 {
            right.body[at] ^= 1 << (at % 8);
        }
        right
    });
    let told = pull(&hub, cache.path(), "owner/name").unwrap_err();
    assert!(
        told.contains("damaged") && told.contains("sha256"),
        "{told}"
    );
    assert_eq!(tree(cache.path()), [""; 0], "the cache is not clean");
    assert_eq!(
        std::fs::read(pull(&hub, cache.path(), "owner/name").unwrap()).unwrap(),
        bytes
    );
}

#[test]
fn a_damaged_part_from_earlier_is_refused_too() {
    let cache = tempfile::tempdir().unwrap();
    let (files, bytes) = one_file(500_000);
    let hub = Hub::start(files.clone(), |r, n, right| {
        if is_body(r) {
            right.cut(if n == 0 { 250_000 } else { 0 })
        } else {
            right
        }
    });
    pull(&hub, cache.path(), "owner/name").unwrap_err();
    let part = incomplete(cache.path());
    let mut kept = std::fs::read(&part).unwrap();
    kept[99] ^= 4;
    std::fs::write(&part, kept).unwrap();
    let hub = Hub::honest(files);
    assert!(
        pull(&hub, cache.path(), "owner/name")
            .unwrap_err()
            .contains("damaged")
    );
    assert_eq!(tree(cache.path()), [""; 0]);
    // Longer than the file: nothing of it can be right.
    std::fs::write(&part, vec![7; 600_000]).unwrap();
    assert_eq!(
        std::fs::read(pull(&hub, cache.path(), "owner/name").unwrap()).unwrap(),
        bytes
    );
    assert_eq!(
        hub.gets().iter().map(Request::offset).collect::<Vec<_>>(),
        [250_000, 0]
    );
}

#[test]
fn lies_about_hash_and_size_are_refused() {
    let other = "00".repeat(32);
    refused(head_says("x-linked-etag", &other), &["damaged", "000000"]);
    refused(head_says("x-linked-size", 99_999), &["100000", "99999"]);
    refused(head_says("x-linked-size", 100_001), &["100000", "100001"]);
    let no_length = |size: u64| {
        move |r: &Request, _, right: Reply| {
            if is_head(r) {
                right.with("x-linked-size", size)
            } else {
                Reply {
                    length: !is_body(r),
                    ..right
                }
            }
        }
    };
    refused(no_length(99_999), &["more", "99999"]);
    refused(
        |r, _, right| {
            if is_body(r) {
                right.with("content-length", 5)
            } else {
                right
            }
        },
        &["would send 5 bytes"],
    );
    for absurd in [
        "0",
        "-1",
        "banana",
        "18446744073709551615",
        "99999999999999999999999",
        "1e9",
        "",
    ] {
        refused(
            head_says("x-linked-size", absurd),
            &["as the size of m-mxfp4.gguf"],
        );
    }
    let much = 1u64 << 60;
    refused(
        head_says("x-linked-size", much),
        &["not enough disk space", "HF_HUB_CACHE"],
    );
}

#[test]
fn answers_that_are_no_file_are_explained() {
    let page = |r: &Request| {
        is_body(r).then(|| {
            Reply::new(200, "<html>log in</html>").with("content-type", "text/html; charset=utf-8")
        })
    };
    refused(
        move |r, _, right| page(r).unwrap_or(right),
        &["web page", "proxy"],
    );
    refused(
        |_, _, _| Reply::new(200, "<html>").with("content-type", "text/html"),
        &["list of files", "web page"],
    );
    refused(
        |r, _, right| {
            if is_head(r) {
                right.without("x-repo-commit")
            } else {
                right
            }
        },
        &["x-repo-commit"],
    );
    refused(
        head_says("x-repo-commit", "../../../etc"),
        &["x-repo-commit"],
    );
    refused(
        head_says("x-linked-etag", "\"../../../../tmp/x\""),
        &["no sha256"],
    );
    let sha1 = "a".repeat(40);
    refused(head_says("x-linked-etag", &sha1), &["no sha256"]);
    refused(
        |r, _, right| {
            if is_body(r) {
                right.with("content-encoding", "gzip")
            } else {
                right
            }
        },
        &["encoded as 'gzip'"],
    );
    let status = |status: u16, code: &'static str| {
        move |r: &Request, _, right: Reply| {
            if is_head(r) {
                Reply::new(status, "").with("x-error-code", code)
            } else {
                right
            }
        }
    };
    refused(status(401, ""), &["401", "HF_TOKEN"]);
    refused(status(403, "GatedRepo"), &["gated", "accept its terms"]);
    refused(status(403, ""), &["403", "HF_TOKEN"]);
    refused(status(404, "EntryNotFound"), &["no m-mxfp4.gguf"]);
    refused(status(404, "RevisionNotFound"), &["no such revision"]);
    refused(status(401, "RepoNotFound"), &["no repository owner/name"]);
    refused(status(500, ""), &["500", "gave up"]);
    refused(
        |r, _, right| {
            if is_head(r) {
                Reply::new(302, "").with("location", &r.path)
            } else {
                right
            }
        },
        &["redirects"],
    );
    refused(
        |r, _, right| {
            if is_head(r) {
                Reply::new(302, "")
            } else {
                right
            }
        },
        &["without a Location"],
    );
    refused(
        |r, _, right| {
            if is_head(r) {
                Reply::new(302, "").with("location", "ftp://example.org/m.gguf")
            } else {
                right
            }
        },
        &["refusing"],
    );
}

#[test]
fn file_names_never_leave_the_cache() {
    for name in [
        "../../../escaped.gguf",
        "/tmp/escaped.gguf",
        "a/../../b.gguf",
        "a\\..\\b.gguf",
        "C:/b.gguf",
        "a\u{0}b.gguf",
    ] {
        let outer = tempfile::tempdir().unwrap();
        let hub = Hub::honest(vec![(name.to_string(), b"x".to_vec())]);
        let told = pull(&hub, &outer.path().join("cache"), "owner/name").unwrap_err();
        assert!(told.contains("refusing the file name"), "{told}");
        assert_eq!(tree(outer.path()), [""; 0]);
    }
}
