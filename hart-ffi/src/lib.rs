//! The C API of hart: a thin layer over `hart-core` without logic. One file per object, in the order of the header.
//!
//! Every exported function runs inside `guard`, reads and writes its pointers through `handle`, `text` and `out`, and
//! returns a status. `hart-ffi/header` generates `include/hart.h` from the doc comments here. docs/c-abi.md describes
//! the ABI.

#![allow(non_camel_case_types)] // The names are C names.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)] // Every exported function takes raw pointers; the header documents what they must be.
#![allow(clippy::missing_safety_doc)] // The header states the rules for pointers once, at its top.

mod guard;
mod handle;
mod out;
mod request_parts;
mod text;

pub mod version;

pub mod status;

pub mod last_error;

pub mod user_data;

pub mod log;

pub mod device;

pub mod cancel;

pub mod event;

pub mod options;

pub mod files;

pub mod model;

pub mod request;

pub mod request_image;

pub mod request_values;

pub mod context;

pub mod generate;

pub mod image;

pub mod tokens;
