//! Contexts: prompts that are encoded once and used by many requests.

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use std::time::Duration;

use hart_core::stages::Progress;
use hart_core::{
    CancelToken, Control, Error, Event, Files, Generation, Hart, OpenOptions, PromptContext, Request, Stage, Step, SystemPrompt,
    WeightSet,
};
use support::{Goldens, values};

const PROMPTS: [&str; 3] = ["a parrot", "two red circles above a blue square", "x"];

/// Asserts at compile time that contexts can be shared between threads.
const _: fn() = || {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<PromptContext>();
};

fn model() -> Hart {
    Goldens::published().hart(WeightSet::PreferEma)
}

fn request() -> Request {
    Request::batch(PROMPTS)
}

/// Generates, and returns the events too.
fn generate(hart: &Hart, request: &Request) -> (Generation, Vec<(Stage, Step, f32)>) {
    let mut events = Vec::new();
    let mut observer = |event: &Event<'_>| {
        events.push((event.stage, event.step, event.fraction));
        Control::Continue
    };
    let generation = hart.generate_with(request, &mut observer).unwrap();
    (generation, events)
}

fn problem(result: hart_core::Result<impl Sized>) -> String {
    match result {
        Err(error @ Error::Request { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the request is valid"),
    }
}

#[test]
fn images_are_the_same_with_a_context_and_the_text_stage_is_skipped() {
    let hart = model();
    let long = "word ".repeat(500);
    let requests = [
        request().images_per_prompt(2).seed(7),
        request().images_per_prompt(2).seed(7).system_prompt(SystemPrompt::Text("Draw this:".into())),
        request().smoothing(true).system_prompt(SystemPrompt::Off),
        Request::batch(["a parrot", &long]),
    ];
    for request in requests {
        let context = hart.encode(&request).unwrap();
        let (without, events) = generate(&hart, &request);
        assert!(events.iter().any(|(stage, ..)| *stage == Stage::Text));
        let (with, events) = generate(&hart, &request.clone().context(context.clone()));
        // Images have prompt, seed and settings too.
        assert!(with.images == without.images, "{request:?}");
        assert_eq!(with.truncated, without.truncated);
        assert_eq!(context.truncated(), without.truncated);
        assert!(events.iter().all(|(stage, ..)| *stage != Stage::Text));
        assert!(events.windows(2).all(|pair| pair[0].2 <= pair[1].2));
        assert!((events.last().unwrap().2 - 1.0).abs() < 1e-3, "{events:?}");
        assert!(with.timings.of(Stage::Text) < Duration::from_millis(1), "{:?}", with.timings);
    }
}

/// Uses a model with a thread pool of its own, and the one without.
#[test]
fn prompts_that_are_encoded_together_can_be_used_one_by_one() {
    let hart = model();
    let long = "word ".repeat(500);
    let prompts = ["a parrot", &long, "x"];
    let contexts = hart.encode(&Request::batch(prompts)).unwrap().split();
    assert_eq!(contexts.len(), 3);
    for (context, prompt) in contexts.into_iter().zip(prompts) {
        let alone = hart.generate(&Request::new(prompt).seed(3)).unwrap();
        let with = hart.generate(&Request::new("").context(context).seed(3)).unwrap();
        assert!(with.images == alone.images && with.truncated == alone.truncated, "{prompt}");
    }
}

#[test]
fn a_context_works_with_other_settings_and_from_several_threads() {
    let folder = Goldens::published().folder;
    for options in [OpenOptions::new(), OpenOptions::new().threads(2)] {
        let hart = Hart::open(&folder, options).unwrap();
        let context = hart.encode(&Request::new("a parrot")).unwrap();
        let variants = [Request::new("a parrot").seed(1), Request::new("a parrot").seed(2).guidance(2.0).steps(None)];
        std::thread::scope(|scope| {
            for variant in variants {
                let (hart, context) = (hart.clone(), context.clone());
                scope.spawn(move || {
                    let images = hart.generate(&variant).unwrap().images;
                    assert!(hart.generate(&variant.context(context)).unwrap().images == images);
                });
            }
        });
    }
}

#[test]
fn a_context_replaces_the_prompts_and_contradicts_others() {
    let hart = model();
    let system = || SystemPrompt::Text("Draw:".into());
    let context = hart.encode(&request().system_prompt(system())).unwrap();
    assert_eq!(context.prompts(), PROMPTS);
    assert_eq!(*context.system_prompt(), system());
    // Prompts and system prompt that were set before are replaced.
    let valid = Request::new("a house").images_per_prompt(2).context(context.clone());
    assert_eq!(valid.total_images(), 6);
    assert_eq!(hart.generate(&valid.clone().seed(1)).unwrap().images.len(), 6);
    // The same ones are accepted later.
    assert!(valid.clone().prompts(PROMPTS).system_prompt(system()).validate().is_ok());

    let message = problem(hart.generate(&valid.clone().prompts(["a parrot", "a house", "x"])));
    assert!(
        message.contains("number 2 is \"a house\"") && message.contains("\"two red circles above a blue square\""),
        "{message}"
    );
    let message = problem(valid.clone().prompts(["a parrot"]).validate());
    assert!(message.contains("1 in all") && message.contains("encodes 3"), "{message}");
    let message = problem(valid.clone().system_prompt(SystemPrompt::Off).validate());
    assert!(message.contains("system prompt: none") && message.contains("\"Draw:\""), "{message}");
    let message = problem(valid.clone().system_prompt(SystemPrompt::Checkpoint).validate());
    assert!(message.contains("the model's") && message.contains("\"Draw:\""), "{message}");
    let start = "word ".repeat(30);
    let [first, second] = ["a", "b"].map(|end| SystemPrompt::Text(format!("{start}{end}")));
    let long = Request::new("x").context(hart.encode(&Request::new("x").system_prompt(first)).unwrap());
    assert!(long.clone().validate().is_ok() && long.system_prompt(second).validate().is_err());
    let none = Request::new("x").context(hart.encode(&Request::new("x").system_prompt(SystemPrompt::Off)).unwrap());
    assert!(none.system_prompt(SystemPrompt::Text(String::new())).validate().is_ok());

    // Without the context, the prompts stay.
    let removed = valid.context(None);
    assert_eq!(removed.total_images(), 6);
    assert!(removed.prompts(["a house"]).validate().is_ok());
}

#[test]
fn a_context_belongs_to_one_model_and_its_clones() {
    let (hart, other) = (model(), model());
    let context = hart.encode(&Request::new("a parrot")).unwrap();
    assert!(context.is_of(&hart) && context.is_of(&hart.clone()) && !context.is_of(&other));
    let request = Request::new("a parrot").context(context);
    assert!(hart.clone().generate(&request).is_ok());
    for message in [problem(other.generate(&request)), problem(other.encode(&request))] {
        assert!(message.contains("context: belongs to another model") && message.contains("tiny-a"), "{message}");
    }
    // A context outlives its model.
    drop(hart);
    assert!(request.validate().is_ok() && problem(other.generate(&request)).contains("tiny-a"));

    let mut files = Files::new();
    let folder = Goldens::published().folder;
    for name in ["llm/config.json", "llm/model.safetensors", "tokenizer/config.json", "tokenizer/model.safetensors"]
        .into_iter()
        .chain(["text/config.json", "text/model.safetensors", "text/tokenizer.json", "text/tokenizer_config.json"])
    {
        files.insert(name, std::fs::read(folder.join(name)).unwrap()).unwrap();
    }
    let embedded = Hart::from_files(files, OpenOptions::new()).unwrap();
    assert!(problem(embedded.generate(&request)).contains("this one, files in memory"));
}

#[test]
fn encoding_checks_the_request_reports_progress_and_can_be_cancelled() {
    let hart = model();
    let layers = hart.config().text.num_layers;
    let mut fractions = Vec::new();
    let mut observer = |event: &Event<'_>| {
        assert!(event.stage == Stage::Text && matches!(event.step, Step::TextLayer { .. }));
        fractions.push(event.fraction);
        Control::Continue
    };
    let context = hart.encode_with(&request(), &mut observer).unwrap();
    assert_eq!(fractions.len(), PROMPTS.len() * layers);
    assert!(fractions.is_sorted() && (fractions.last().unwrap() - 1.0).abs() < 1e-6, "{fractions:?}");

    // A request with a context is encoded already.
    let mut none = |_: &Event<'_>| panic!("work has begun");
    let again = hart.encode_with(&Request::new("a house").context(context.clone()), &mut none).unwrap();
    assert_eq!(again.prompts(), context.prompts());

    assert!(problem(hart.encode_with(&Request::new(" "), &mut none)).contains("empty"));
    let filtered = || request().filter(|prompt: &str| prompt.contains("circles").then(|| "no circles".to_string()));
    assert!(matches!(hart.encode_with(&filtered(), &mut none), Err(Error::Refused { .. })));
    // The filter receives the prompts of a context.
    assert!(matches!(hart.generate_with(&filtered().context(context), &mut none), Err(Error::Refused { .. })));

    let mut cancel = |_: &Event<'_>| Control::Cancel;
    assert!(hart.encode_with(&request(), &mut cancel).unwrap_err().is_cancelled());
    let token = CancelToken::new();
    token.cancel();
    assert!(hart.encode(&request().cancel_token(token)).unwrap_err().is_cancelled());
}

#[test]
fn hidden_states_and_masks_are_those_of_the_text_encoder() {
    let hart = model();
    let system_prompt = "Draw this:";
    let context = hart.encode(&request().system_prompt(SystemPrompt::Text(system_prompt.into()))).unwrap();
    let config = hart.config();
    let length = config.transformer.context_tokens;
    assert_eq!([context.tokens(), context.channels()], [length, config.text.hidden_size]);
    let tokens = hart.text().tokenizer().tokenize(&PROMPTS, Some(system_prompt), length).unwrap();
    for prompt in 0..PROMPTS.len() {
        let row = hart.text().encode(&tokens.row(prompt), &mut Progress::silent()).unwrap();
        let hidden = context.hidden(prompt).unwrap();
        assert_eq!(hidden.len(), length * config.text.hidden_size);
        assert!(hidden.iter().map(|v| v.to_bits()).eq(values(row.hidden).iter().map(|v| v.to_bits())));
        assert_eq!(context.mask(prompt).unwrap(), tokens.mask[prompt]);
    }
    for message in [problem(context.hidden(3)), problem(context.mask(3))] {
        assert!(message.contains("index 3 does not exist") && message.contains("3 prompts"), "{message}");
    }
    let hidden_bytes = (4 * PROMPTS.len() * length * config.text.hidden_size) as u64;
    assert!((hidden_bytes..hidden_bytes + 16 * (PROMPTS.len() * length) as u64).contains(&context.bytes()), "{}", context.bytes());
    let debug = format!("{context:?}");
    assert!(debug.contains("a parrot") && debug.contains("tiny-a"), "{debug}");
}

#[test]
fn a_run_with_a_context_needs_no_memory_for_the_text_stage() {
    let hart = model();
    let long = Request::new("a parrot").system_prompt(SystemPrompt::Text("word ".repeat(5000)));
    let context = hart.encode(&Request::new("a parrot").system_prompt(SystemPrompt::Text("word ".repeat(5000)))).unwrap();
    let (without, with) = (hart.memory(&long), hart.memory(&long.context(context)));
    assert!(with.weights == without.weights && with.working <= without.working, "{with:?}, {without:?}");
}
