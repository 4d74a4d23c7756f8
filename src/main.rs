//! The `gossamer` program; everything it does is in the library, see [`gossamer::cli`].
fn main() -> std::process::ExitCode {
    gossamer::cli::main()
}
