//! The command line.

/// Runs the program and returns its exit code: 0, 1 on an error, 2 on wrong usage.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
