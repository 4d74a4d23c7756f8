//! Coding agents in tool loops that change the world, over a real socket: Codex speaks Responses,
//! opencode speaks chat completions. A scripted model reads a file, edits it and looks at the result;
//! it learns the file's secret word from the first call alone. Each loop runs with well-formed
//! Harmony, and once with each way in which gpt-oss is known to get it wrong.

use crate::{
    common::{fresh_seed, root},
    scripted::{self, Prompt},
};
use gossamer::server::{App, Settings, router};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// For one run of an agent; they take seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the model writes calls, in the order of the vectors of malformed Harmony.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Dialect {
    WellFormed,
    /// On the analysis channel, with the content type `code`.
    AnalysisCode,
    /// On the analysis channel, the recipient before or after it.
    Analysis,
    /// The content type glued to the recipient's marker, or without a marker.
    Glued,
    /// The content type glued to the recipient.
    NameJson,
    /// A header of commentary that begins a second time as something else.
    TwoHeaders,
    /// Arguments that are not JSON, three times; then well-formed calls.
    BrokenArguments,
}

const DIALECTS: [Dialect; 7] = [
    Dialect::WellFormed,
    Dialect::AnalysisCode,
    Dialect::Analysis,
    Dialect::Glued,
    Dialect::NameJson,
    Dialect::TwoHeaders,
    Dialect::BrokenArguments,
];

/// What follows `<|start|>assistant` to say this before anything else.
const THOUGHT: &str = "<|channel|>commentary to=assistant<|channel|>analysis<|message|>I'm \
                       thinking<|end|><|start|>assistant";

impl Dialect {
    /// The `index`-th call of a conversation.
    fn call(self, index: usize, name: &str, arguments: &str) -> String {
        let even = index.is_multiple_of(2);
        match self {
            Dialect::WellFormed | Dialect::BrokenArguments => format!(
                "<|channel|>analysis<|message|>Now {name}.<|end|><|start|>assistant to=functions.{name}\
                 <|channel|>commentary <|constrain|>json<|message|>{arguments}<|call|>"
            ),
            Dialect::AnalysisCode => format!(
                "<|channel|>analysis to=functions.{name} code<|message|>{arguments}<|call|>"
            ),
            Dialect::Analysis if even => {
                format!(" to=functions.{name}<|channel|>analysis<|message|>{arguments}<|call|>")
            }
            Dialect::Analysis => {
                format!("<|channel|>analysis to=functions.{name}<|message|>{arguments}<|call|>")
            }
            Dialect::Glued if even => format!(
                "<|channel|>commentary to=functions.{name}<|constrain|>json<|message|>{arguments}<|call|>"
            ),
            Dialect::Glued => format!(
                " to=functions.{name}<|channel|>commentary json<|message|>{arguments}<|call|>"
            ),
            Dialect::NameJson => format!(
                "<|channel|>commentary to=functions.{name}json<|message|>{arguments}<|call|>"
            ),
            Dialect::TwoHeaders => format!(
                "{THOUGHT}<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>\
                 {arguments}<|call|>"
            ),
        }
    }

    /// The last word.
    fn answer(self, text: &str) -> String {
        match self {
            Dialect::TwoHeaders => format!(
                "{THOUGHT}<|channel|>commentary to=assistant<|channel|>final<|message|>{text}<|return|>"
            ),
            _ => format!("<|channel|>final<|message|>{text}<|return|>"),
        }
    }

    /// How arguments get broken, call by call: a brace short, no JSON at all, one bracket too many.
    fn broken(self, index: usize, arguments: &str) -> Option<String> {
        match (self, index) {
            (Dialect::BrokenArguments, 0) => arguments.strip_suffix('}').map(str::to_owned),
            (Dialect::BrokenArguments, 1) => Some("print(open('notes.txt').read())".into()),
            (Dialect::BrokenArguments, 2) => Some(format!("{arguments}]")),
            _ => None,
        }
    }
}

/// The word after `marker` in the last place where it stands.
fn word_after<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    let rest = text.rsplit_once(marker)?.1.trim_start();
    rest.split(|c: char| !c.is_alphanumeric()).next()
}

/// What the file is to hold in the end, besides what it held: text that has tripped up parsers.
fn note(secret: &str) -> String {
    format!("/** closed by {secret} */\nfn f() {{ \"}}\"; }}\n")
}

/// The file before.
fn notes(secret: &str) -> String {
    format!("secret: {secret}\nstate: open\n")
}

/// What the model does next.
enum Step {
    Call(&'static str, Value),
    /// The same, of a function whose name the prompt tells.
    CallShown(String, Value),
    Say(String),
}

/// The last word when all went well.
fn done(secret: &str) -> String {
    format!("The file is closed by {secret}.")
}

/// The model's part: `steps` by the results so far, each from what the prompt tells.
fn script(
    dialect: Dialect,
    steps: impl Fn(usize, &Prompt, &str) -> Step,
) -> impl Fn(&Prompt) -> String {
    move |prompt| {
        // opencode asks for a title beside the task.
        if !prompt.text.contains("namespace functions") {
            return "<|channel|>final<|message|>Notes<|return|>".into();
        }
        let spoiled = match dialect {
            Dialect::BrokenArguments => 3,
            _ => 0,
        };
        let step = prompt.results.saturating_sub(spoiled);
        // Nothing is known before the first result; the word is in no other place.
        let secret = match step {
            0 => "unread",
            _ => match word_after(&prompt.text, "secret:") {
                Some(secret) => secret,
                None => return dialect.answer("I have not seen the file."),
            },
        };
        let (name, arguments) = match steps(step, prompt, secret) {
            Step::Call(name, arguments) => (name.to_owned(), arguments),
            Step::CallShown(name, arguments) => (name, arguments),
            Step::Say(text) => return dialect.answer(&text),
        };
        let arguments = arguments.to_string();
        let arguments = dialect
            .broken(prompt.results, &arguments)
            .unwrap_or(arguments);
        dialect.call(prompt.results, &name, &arguments)
    }
}

/// A server of the scripted model on a free port, until it is dropped.
struct Server {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start(script: impl Fn(&Prompt) -> String + Send + 'static) -> Server {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN);
        let _ = log.with_test_writer().try_init();
        let (engine, tokenizer) = scripted::engine(Box::new(script));
        let app = App::for_engine("gpt-oss-20b", engine, tokenizer, Settings::default())
            .expect("a server");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a free port");
        let address = listener.local_addr().expect("an address");
        let service = router(app).into_make_service_with_connect_info::<SocketAddr>();
        runtime.spawn(async move { axum::serve(listener, service).await });
        Server {
            address,
            _runtime: runtime,
        }
    }

    /// Repairs of Harmony so far, of all kinds.
    fn repairs(&self) -> f64 {
        let url = format!("http://{}/metrics", self.address);
        let text = ureq::get(&url)
            .call()
            .and_then(|mut answer| answer.body_mut().read_to_string())
            .expect("metrics");
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        lines
            .filter(|(name, _)| name.starts_with("gossamer_harmony_repairs_total"))
            .map(|(_, count)| count.parse::<f64>().expect("a number"))
            .sum()
    }
}

/// The program `name` of tests/clients/package.json.
fn client(name: &str) -> PathBuf {
    let path = root().join("tests/clients/node_modules/.bin").join(name);
    assert!(
        path.exists(),
        "no {}: run the test command of README.md, which installs the clients",
        path.display()
    );
    path
}

/// The command for agent `name`, without network but this machine's, at home in `home`, at work in
/// `work`.
fn agent(name: &str, home: &Path, work: &Path) -> Command {
    let node = root().join("tests/clients/.venv/bin");
    let nowhere = "http://127.0.0.1:9";
    let mut command = Command::new(client(name));
    command
        .env_clear()
        .env(
            "PATH",
            format!("{}:/usr/local/bin:/usr/bin:/bin", node.display()),
        )
        .env("HOME", home)
        .env("NO_PROXY", "127.0.0.1,localhost")
        .envs(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"].map(|k| (k, nowhere)))
        .current_dir(work)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it to its end and returns what it wrote.
fn run(mut command: Command) -> String {
    let child = command
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let id = child.id().to_string();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let output = match receiver.recv_timeout(PATIENCE) {
        Ok(output) => output.expect("its output"),
        Err(_) => {
            let _ = Command::new("kill").arg(id).status();
            let said = receiver.recv().expect("its output").expect("its output");
            panic!(
                "{command:?} took more than {PATIENCE:?}:\n{}{}",
                String::from_utf8_lossy(&said.stdout),
                String::from_utf8_lossy(&said.stderr)
            );
        }
    };
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    let _ = write!(said, "\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}",
        output.status
    );
    said
}

/// Runs one agent through every dialect: `steps` is what the model does in a work folder, `command`
/// starts the agent there.
fn loops<S>(steps: impl Fn(&Path) -> S, command: impl Fn(SocketAddr, &Path, &Path) -> Command)
where
    S: Fn(usize, &Prompt, &str) -> Step + Send + 'static,
{
    let seed = fresh_seed();
    let home = tempfile::tempdir().expect("a folder");
    for (i, dialect) in DIALECTS.into_iter().enumerate() {
        let begun = Instant::now();
        let secret = format!(
            "w{:x}",
            seed.wrapping_mul(0x9e37_79b9).wrapping_add(i as u64) & 0xff_ffff
        );
        let work = tempfile::tempdir().expect("a folder");
        let work = work.path().canonicalize().expect("its path");
        let file = work.join("notes.txt");
        std::fs::write(&file, notes(&secret)).expect("written");
        let server = Server::start(script(dialect, steps(&work)));
        let said = run(command(server.address, home.path(), &work));
        let held = std::fs::read_to_string(&file).expect("the file");
        let expected = notes(&secret).replace("state: open\n", &note(&secret));
        assert_eq!(held, expected, "{dialect:?}; the agent said:\n{said}");
        assert!(
            said.contains(&done(&secret)),
            "{dialect:?}: no last word in:\n{said}"
        );
        // The others are read as they stand.
        let repaired = matches!(dialect, Dialect::NameJson | Dialect::TwoHeaders);
        let repairs = server.repairs();
        assert_eq!(repairs > 0.0, repaired, "{dialect:?}: {repairs} repairs");
        println!(
            "{dialect:?}: {:.1} s, {repairs} repairs",
            begun.elapsed().as_secs_f64()
        );
    }
}

#[test]
fn codex_reads_edits_and_checks_a_file_whatever_the_headers_look_like() {
    let steps = |_: &Path| {
        |step: usize, prompt: &Prompt, secret: &str| {
            let run = |cmd: String| Step::Call("exec_command", json!({"cmd": cmd}));
            match step {
                0 => run("cat notes.txt".into()),
                1 => {
                    let text = note(secret);
                    run(format!(
                        "sed -i '/^state: open/d' notes.txt && cat >> notes.txt <<'END'\n{text}END"
                    ))
                }
                2 => run("cat notes.txt".into()),
                // A function in a namespace comes back with it: Codex knows it by both.
                3 => {
                    let types = prompt.text.split("\ntype ");
                    let names = types.filter_map(|declared| declared.split(' ').next());
                    match names.into_iter().find(|name| name.ends_with("close_agent")) {
                        Some(name) => Step::CallShown(name.to_owned(), json!({"target": "nobody"})),
                        None => Step::Say("No close_agent is declared.".into()),
                    }
                }
                _ if prompt.text.contains("invalid agent id nobody") => Step::Say(done(secret)),
                _ => Step::Say("Codex did not know its function.".into()),
            }
        }
    };
    let command = |address: SocketAddr, home: &Path, work: &Path| {
        let config = format!(
            "model = \"gpt-oss-20b\"\nmodel_provider = \"gossamer\"\napproval_policy = \"never\"\n\
             sandbox_mode = \"danger-full-access\"\n[model_providers.gossamer]\nname = \"gossamer\"\n\
             base_url = \"http://{address}/v1\"\nwire_api = \"responses\"\n"
        );
        std::fs::create_dir_all(home.join(".codex")).expect("a folder");
        std::fs::write(home.join(".codex/config.toml"), config).expect("written");
        let mut command = agent("codex", home, work);
        command.args(["exec", "--skip-git-repo-check", "Close notes.txt."]);
        command
    };
    loops(steps, command);
}

#[test]
fn opencode_reads_edits_and_checks_a_file_whatever_the_headers_look_like() {
    let steps = |work: &Path| {
        let file = work.join("notes.txt");
        move |step: usize, _: &Prompt, secret: &str| match step {
            0 => Step::Call("read", json!({"filePath": file})),
            1 => Step::Call(
                "edit",
                json!({"filePath": file, "oldString": "state: open\n", "newString": note(secret)}),
            ),
            2 => Step::Call(
                "bash",
                json!({"command": "cat notes.txt", "description": "Shows the file"}),
            ),
            _ => Step::Say(done(secret)),
        }
    };
    let command = |address: SocketAddr, home: &Path, work: &Path| {
        let config = json!({
            "model": "gossamer/gpt-oss-20b",
            "autoupdate": false,
            "share": "disabled",
            "permission": {"*": "allow"},
            "provider": {"gossamer": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "gossamer",
                "options": {"baseURL": format!("http://{address}/v1")},
                "models": {"gpt-oss-20b": {"limit": {"context": 40_000, "output": 8192}}},
            }},
        });
        std::fs::write(work.join("opencode.json"), config.to_string()).expect("written");
        let mut command = agent("opencode", home, work);
        command.args(["run", "Close notes.txt."]).envs(
            [
                "MODELS_FETCH",
                "AUTOUPDATE",
                "LSP_DOWNLOAD",
                "DEFAULT_PLUGINS",
            ]
            .map(|what| (format!("OPENCODE_DISABLE_{what}"), "1")),
        );
        command
    };
    loops(steps, command);
}
