//! The server through its router, without a socket unless a test is about sockets.

mod chat;
mod choices;
mod clients;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod completions;
mod hostile;
mod load;
mod logs;
mod loops;
mod models;
mod ops;
mod program;
mod puppet;
mod random_turns;
mod responses;
mod scripted;
mod serve;
mod sockets;
#[allow(dead_code)]
mod support;
mod table;
mod turn;
