//! The `gpt-oss-128k-benchmark` program: `gossamer bench --long` by a name of its own.
fn main() -> std::process::ExitCode {
    gossamer::cli::benchmark()
}
