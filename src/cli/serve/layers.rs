//! Flags before variables, variables before the file, the file before defaults.
//!
//! Whatever is set, wherever, is turned into the flag it stands for and read by the same parser, so
//! there is one list of settings, one check of their values and one place for their defaults.

use super::{super::Usage, flags::Args};
use anyhow::{Context, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, parser::ValueSource};
use figment::{
    Provider,
    providers::{Format, Toml},
    value::{Dict, Value},
};
use std::{collections::BTreeMap, ffi::OsString, path::Path};

/// The environment.
pub type Variables = BTreeMap<String, OsString>;

/// Flags that close the door. Where one is set to nothing, something that should have set it did not:
/// nobody means to open the door by that.
const DOORS: [&str; 2] = ["api-key", "api-key-file"];

/// What `given` (the command line after `serve`) means together with the variables and the file that
/// either names; and the variables that look like ours, but are no flag's.
///
/// # Errors
/// A file that can't be read, a key in it that is no flag, a value that its flag refuses; each
/// says where it comes from.
pub fn read(given: Vec<OsString>, env: &Variables) -> Result<(Args, Vec<String>)> {
    let command = command();
    let matches = parse(&command, given.clone(), "the command line")?;
    let mut all: Vec<OsString> = Vec::new();
    let mut file_settings = Dict::new();
    let mut file_name = String::new();
    let named = matches.get_one::<std::path::PathBuf>("config").cloned();
    let config = env.get(&variable("config")).filter(|path| !path.is_empty());
    if let Some(path) = named.or_else(|| Some(config?.into())) {
        file_settings = file(&path)?;
        file_name = path.display().to_string();
        check_keys(&command, &file_settings, &file_name)?;
    }
    for arg in command.get_arguments() {
        let Some(flag) = arg.get_long() else { continue };
        let id = arg.get_id().as_str();
        if flag == "config" || matches.value_source(id) == Some(ValueSource::CommandLine) {
            continue;
        }
        let found = if let Some((name, value)) = value_of(env, flag)? {
            Some((name, texts_of(arg, &value)))
        } else if let Some(value) = look_up(&file_settings, flag) {
            let from = format!("{file_name}: key `{flag}`");
            let texts = flat(value).with_context(|| from.clone())?;
            Some((from, texts))
        } else {
            None
        };
        if let Some((from, texts)) = found {
            if texts.is_empty() && DOORS.contains(&flag) {
                return Err(
                    Usage(format!("{from}: holds no key: leave it out, or set one")).into(),
                );
            }
            let flags = as_flags(arg, flag, texts, &from)?;
            // On its own first: an error then names its source.
            parse(&command, flags.clone(), &from)?;
            all.extend(flags);
        }
    }
    all.extend(given);
    let matches = parse(&command, all, "the command line")?;
    let known: Vec<String> = command
        .get_arguments()
        .filter_map(Arg::get_long)
        .map(variable)
        .collect();
    let ours = env.keys().filter(|name| name.starts_with("GOSSAMER_"));
    let unknown = ours.filter(|name| !known.contains(name)).cloned();
    Ok((Args::from_arg_matches(&matches)?, unknown.collect()))
}

/// The variable of `flag` and its value; one that is empty is not set.
fn value_of(env: &Variables, flag: &str) -> Result<Option<(String, String)>> {
    let name = variable(flag);
    match env.get(&name).map(|value| value.to_str()) {
        Some(None) => Err(Usage(format!("{name}: its value is not UTF-8")).into()),
        Some(Some("")) if DOORS.contains(&flag) => {
            Err(Usage(format!("{name}: holds no key: unset it, or set one")).into())
        }
        Some(Some(value)) if !value.is_empty() => Ok(Some((name, value.to_owned()))),
        _ => Ok(None),
    }
}

fn command() -> Command {
    use clap::Args as _;
    Args::augment_args(Command::new("gossamer serve").no_binary_name(true))
}

/// `GOSSAMER_API_KEY` for `api-key`.
fn variable(flag: &str) -> String {
    format!("GOSSAMER_{}", flag.replace('-', "_").to_ascii_uppercase())
}

fn parse(command: &Command, flags: Vec<OsString>, from: &str) -> Result<ArgMatches> {
    command
        .clone()
        .try_get_matches_from(flags)
        .map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            Usage(format!("{from}: {line}")).into()
        })
}

fn file(path: &Path) -> Result<Dict> {
    let name = || format!("--config {}", path.display());
    // Read here: a file that is not there is no error to the library.
    let text = std::fs::read_to_string(path).with_context(name)?;
    let data = Toml::string(&text).data().with_context(name)?;
    Ok(data.into_values().next().unwrap_or_default())
}

fn check_keys(command: &Command, settings: &Dict, file: &str) -> Result<()> {
    let flags: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
    for key in settings.keys() {
        let flag = key.replace('_', "-");
        if flag == "config" || !flags.contains(&flag.as_str()) {
            let text = format!("{file}: unknown key `{key}`: keys are {}", flags.join(", "));
            return Err(Usage(text).into());
        }
    }
    Ok(())
}

fn look_up<'a>(settings: &'a Dict, flag: &str) -> Option<&'a Value> {
    settings
        .get(flag)
        .or_else(|| settings.get(&flag.replace('-', "_")))
}

/// A variable's values: a list is separated by commas.
fn texts_of(arg: &Arg, value: &str) -> Vec<String> {
    match arg.get_action() {
        ArgAction::Append => value.split(',').map(|v| v.trim().to_owned()).collect(),
        _ => vec![value.to_owned()],
    }
}

/// A value of the file as texts: one, or those of an array.
fn flat(value: &Value) -> Result<Vec<String>> {
    Ok(match value {
        Value::String(_, text) => vec![text.clone()],
        Value::Bool(_, on) => vec![on.to_string()],
        Value::Num(_, number) => {
            let text = number.to_i128().map(|n| n.to_string());
            let text = text.or_else(|| number.to_u128().map(|n| n.to_string()));
            vec![text.unwrap_or_else(|| number.to_f64().unwrap_or(f64::NAN).to_string())]
        }
        Value::Array(_, values) => {
            let texts: Result<Vec<_>> = values.iter().map(flat).collect();
            texts?.concat()
        }
        _ => return Err(Usage("expected a text, a number, true, false, or a list".into()).into()),
    })
}

fn as_flags(arg: &Arg, flag: &str, texts: Vec<String>, from: &str) -> Result<Vec<OsString>> {
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        let flags = texts.iter().map(|text| format!("--{flag}={text}").into());
        return Ok(flags.collect());
    }
    let on = match texts.as_slice() {
        [text] => match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Some(true),
            "0" | "false" | "no" | "off" => Some(false),
            _ => None,
        },
        _ => None,
    };
    match on {
        Some(true) => Ok(vec![format!("--{flag}").into()]),
        Some(false) => Ok(Vec::new()),
        None => Err(Usage(format!("{from}: expected true or false")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write as _, time::Duration};

    fn read_all(given: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Result<Args> {
        let mut given: Vec<OsString> = given.iter().map(OsString::from).collect();
        let mut written = tempfile::NamedTempFile::new()?;
        if let Some(text) = file {
            written.write_all(text.as_bytes())?;
            given.push("--config".into());
            given.push(written.path().into());
        }
        let env = env.iter().map(|&(name, value)| (name.into(), value.into()));
        Ok(read(given, &env.collect())?.0)
    }

    #[test]
    fn variables_that_mean_nothing_are_known() {
        let names = [
            "GOSSAMER_PORT",
            "GOSSAMER_API_KEYS",
            "GOSSAMER_TLS_CRT",
            "PORT",
        ];
        let env = names.map(|name| (name.to_owned(), OsString::from("1")));
        let (_, unknown) = read(Vec::new(), &env.into()).unwrap();
        assert_eq!(unknown, ["GOSSAMER_API_KEYS", "GOSSAMER_TLS_CRT"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_text_is_an_error() {
        use std::os::unix::ffi::OsStringExt as _;
        let value = OsString::from_vec(b"k\xff".to_vec());
        let env = [("GOSSAMER_API_KEY".to_owned(), value)];
        let error = read(Vec::new(), &env.into()).map(drop).unwrap_err();
        assert!(error.to_string().contains("GOSSAMER_API_KEY"), "{error}");
    }

    #[test]
    fn each_layer_gives_way_to_the_one_above() {
        let file = "port = 1\nmax-seqs = 1\nctx_size = 1000\npreload = true\n\
                    api-key = [\"f1\", \"f2\"]\ndrain-timeout = \"5s\"\n";
        let env = [
            ("GOSSAMER_PORT", "2"),
            ("GOSSAMER_MAX_SEQS", "2"),
            ("GOSSAMER_API_KEY", "0012, e2"),
            ("GOSSAMER_DATE", ""),
            ("GOSSAMER_TEST_SEED", "not a flag's"),
        ];
        let args = read_all(&["--port", "3"], &env, Some(file)).unwrap();
        assert_eq!((args.port, args.max_seqs, args.max_waiting), (3, 2, 256));
        assert_eq!(args.common.ctx_size, Some(1000));
        assert_eq!(args.api_key, ["0012", "e2"]);
        assert_eq!(args.drain_timeout, Duration::from_secs(5));
        assert!(args.preload);
        let args = read_all(
            &["--api-key", "c"],
            &[("GOSSAMER_PRELOAD", "off")],
            Some(file),
        );
        let args = args.unwrap();
        assert_eq!((args.port, args.preload), (1, false));
        assert_eq!(args.api_key, ["c"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (given, env, file, says) in [
            (None, None, Some("prot = 1"), "unknown key `prot`"),
            (None, None, Some("port = \"x\""), "key `port`"),
            (None, None, Some("port = 70000"), "key `port`"),
            (
                None,
                None,
                Some("preload = \"maybe\""),
                "expected true or false",
            ),
            (None, None, Some("model = { a = 1 }"), "key `model`"),
            (
                None,
                None,
                Some("config = \"other.toml\""),
                "unknown key `config`",
            ),
            (None, None, Some("port = "), "--config"),
            (None, Some(("GOSSAMER_PORT", "x")), None, "GOSSAMER_PORT"),
            (
                None,
                Some(("GOSSAMER_CONFIG", "/no/such")),
                None,
                "/no/such",
            ),
            (Some("--date=2026-1-1"), None, None, "--date"),
            (None, Some(("GOSSAMER_API_KEY", "")), None, "holds no key"),
            (
                None,
                Some(("GOSSAMER_API_KEY_FILE", "")),
                None,
                "holds no key",
            ),
            (None, None, Some("api-key = []"), "holds no key"),
        ] {
            let given: Vec<&str> = given.into_iter().collect();
            let env: Vec<(&str, &str)> = env.into_iter().collect();
            let error = read_all(&given, &env, file).map(drop).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(says), "{file:?} {env:?}: {text}");
        }
    }
}
