//! The C ABI of hart: a thin border around `hart-core`, with no logic of its own. One file per object, in the header's order.
//!
//! Every exported function goes through `guard`, takes its pointers through `handle`, `text` and `out`, and answers with a status.
//! `include/hart.h` is made from the comments here (`hart-ffi/header`); docs/c-abi.md is the contract in prose.

#![allow(non_camel_case_types)] // C names.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Every export is unsafe by nature; what its pointers must be stands in the header.
#![allow(clippy::missing_safety_doc)] // The header's opening says it once for all.

mod guard;
mod handle;
mod out;
mod text;

pub mod version;

pub mod status;

pub mod device;

pub mod options;

pub mod files;

pub mod model;

pub mod cancel;

pub mod event;

pub mod request;

pub mod generate;

pub mod image;

pub mod tokens;
