//! Comparison part by part: one transformer block at each of the last scales, and the decoder, in hart, PyTorch and OpenVINO.
//!
//! Every engine is a process that answers one line of JSON, a part, with the seconds of one run. Engines of the same precision take
//! turns, so that a slow phase of the machine affects all of them.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use hart_benches::{input_and_state, wave, write_one_block_model};
use hart_core::burn::prelude::Tensor;
use hart_core::stages::{Latent, Progress, Scale, State, plan};
use hart_core::{Hart, OpenOptions, Precision};
use hart_examples::random_checkpoint::Preset;
use serde_json::{Value, json};

use crate::Arguments;
use crate::stages::Spread;

/// The program of the peers.
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers.py");
/// Scales whose blocks are measured: the last ones.
const SCALES: usize = 3;

/// Compares all engines and prints a table for each precision.
///
/// # Errors
///
/// Returns an error if the model can't be written, or an engine fails.
pub fn compare(models: &Path, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let model = models.join(format!("{}-parts", arguments.res.pixels()));
    write_one_block_model(&model, arguments.res)?;
    let parts = parts(arguments.res);
    for &precision in &arguments.precision {
        let name = precision.to_string();
        let mut engines = vec![Engine::hart(&model, precision, arguments)?];
        if !arguments.alone {
            let engine = |engine: &str| Engine::peer(engine, &name, arguments);
            if precision != Precision::Int8 {
                engines.extend([engine("eager")?, engine("compile")?]);
            }
            engines.push(engine("openvino")?);
        }
        let labels: String = engines.iter().map(|engine| format!(" {:>24}", engine.name)).collect();
        println!("{:24}{labels}", format!("{name}, seconds"));
        for (label, part) in &parts {
            let mut times = vec![Vec::new(); engines.len()];
            for _ in 0..arguments.repeat {
                for (engine, times) in engines.iter_mut().zip(&mut times) {
                    times.push(engine.time(part)?);
                }
            }
            let cells: String = times
                .into_iter()
                .map(|times| Spread::of(times.into_iter()))
                .map(|Spread { min, median, max }| format!(" {:>24}", format!("{median:.3} ({min:.3} to {max:.3})")))
                .collect();
            println!("{label:24}{cells}");
        }
        println!();
    }
    Ok(())
}

/// Answers the parts that come in by standard input, for [`Engine::hart`].
///
/// # Errors
///
/// Returns an error if the model can't be opened or a part fails.
pub fn serve(model: &Path, precision: Precision, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let hart = Hart::open(model, OpenOptions::new().device(arguments.device).precision(precision).threads(arguments.threads))?;
    let mut prepared: Option<(String, Part)> = None;
    for line in std::io::stdin().lines() {
        let line = line?;
        if prepared.as_ref().is_none_or(|(last, _)| *last != line) {
            // Only one part takes memory.
            drop(prepared.take());
            let part = Part::new(&hart, &serde_json::from_str(&line)?)?;
            part.run(&hart)?;
            prepared = Some((line, part));
        }
        let Some((_, part)) = &prepared else { continue };
        println!("{}", json!({ "seconds": part.run(&hart)? }));
    }
    Ok(())
}

/// Returns the parts and their names.
fn parts(preset: Preset) -> Vec<(String, Value)> {
    let sides = preset.sides();
    let keys = |scale: usize| CONTEXT_TOKENS + sides[1..scale].iter().map(|side| side * side).sum::<usize>();
    let blocks = (sides.len() - SCALES..sides.len()).map(|scale| {
        let side = sides[scale];
        let part = json!({ "part": "block", "scale": scale, "queries": side * side, "keys": keys(scale) });
        (format!("block, {side} x {side}"), part)
    });
    let side = sides[sides.len() - 1];
    blocks.chain([("decoder".to_string(), json!({ "part": "decoder", "side": side }))]).collect()
}

/// Positions of the context, which scale 0 caches.
const CONTEXT_TOKENS: usize = 300;

/// A process that measures parts.
struct Engine {
    name: String,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Engine {
    fn hart(model: &Path, precision: Precision, arguments: &Arguments) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--parts", "--precision", &precision.to_string(), "--threads", &arguments.threads.to_string(), "--measure"]);
        Self::start("hart", command.arg(model))
    }

    fn peer(engine: &str, precision: &str, arguments: &Arguments) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(&arguments.python);
        Self::start(engine, command.args([PEERS, engine, precision, "--threads", &arguments.threads.to_string()]))
    }

    fn start(name: &str, command: &mut Command) -> Result<Self, Box<dyn Error>> {
        let program = command.get_program().display().to_string();
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = process.map_err(|error| format!("{program}: {error}"))?;
        let (Some(requests), Some(answers)) = (process.stdin.take(), process.stdout.take()) else { unreachable!("both are piped") };
        Ok(Self { name: name.into(), process, requests, answers: BufReader::new(answers) })
    }

    /// Returns the seconds of one run of a part.
    fn time(&mut self, part: &Value) -> Result<f64, Box<dyn Error>> {
        let mut line = String::new();
        writeln!(self.requests, "{part}")
            .and_then(|()| self.answers.read_line(&mut line))
            .map_err(|e| format!("{}: {e}", self.name))?;
        let answer: Option<Value> = serde_json::from_str(&line).ok();
        let seconds = answer.and_then(|answer| answer["seconds"].as_f64());
        let advice = "its messages are above; peers need Python with torch, openvino and nncf: name one with --python";
        seconds.ok_or_else(|| format!("{}: no time for {part} in `{}`: {advice}", self.name, line.trim()).into())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may be in the middle of a run.
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// A part of hart, and its input.
enum Part {
    Block { scale: Scale, input: Tensor<3>, state: Box<State> },
    Decoder(Latent),
}

impl Part {
    /// Prepares a part; a block gets the keys and values of all earlier scales.
    fn new(hart: &Hart, part: &Value) -> Result<Self, Box<dyn Error>> {
        let channels = hart.config().visual.z_channels;
        if part["part"] == "decoder" {
            let side = part["side"].as_u64().ok_or("side: expected a number")? as usize;
            return Ok(Self::Decoder(Latent(wave(hart, [1, channels, side, side]))));
        }
        let index = part["scale"].as_u64().ok_or("scale: expected a number")? as usize;
        let (input, state) = hart.install(|| input_and_state(hart, index))?;
        let scale = plan(&hart.config().transformer)[index];
        Ok(Self::Block { scale, input, state: Box::new(state) })
    }

    /// Returns the seconds of one run.
    fn run(&self, hart: &Hart) -> Result<f64, Box<dyn Error>> {
        let seconds = match self {
            Self::Block { scale, input, state } => {
                let (input, mut state) = (input.clone(), state.clone());
                hart.install(|| {
                    let start = Instant::now();
                    hart.transformer().forward(input, scale, &mut state, &mut Progress::silent())?;
                    Ok::<_, hart_core::Error>(start.elapsed())
                })
            }
            Self::Decoder(latent) => hart.install(|| {
                let start = Instant::now();
                hart.visual().decode_images(latent, &mut Progress::silent())?;
                Ok(start.elapsed())
            }),
        };
        Ok(seconds?.as_secs_f64())
    }
}
