//! Test prompts and the scenes that they describe.

use std::collections::HashSet;

use super::content::{Content, Kind, Naming, Relation, caption};
use super::random::{Random, hash};
use super::scenes::Scenes;
use super::splits::Split;

/// Maximum number of consecutive attempts without a new prompt.
const MAX_ATTEMPTS: u64 = 20_000;

/// A test prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The prompt's text. It mentions everything: objects, arrangement, background and style.
    pub caption: String,
    /// A scene that the prompt describes; [`Scenes::render`] renders it.
    pub content: Content,
}

impl Scenes {
    /// Returns at most `count` different prompts of a split, always the same ones. A smaller count gives the first of them.
    ///
    /// No prompt is held out by another split. The prompts of [`Split::Seen`] are of the kinds in the mix. Small splits have fewer
    /// prompts, and a pack of captioned images has none.
    pub fn test_prompts(&self, split: Split, count: usize) -> Vec<Prompt> {
        let mut prompts = Vec::new();
        let mut captions = HashSet::new();
        let mut attempts = 0..;
        if self.drawings().drawings.is_empty() {
            return prompts;
        }
        let mut last = 0;
        while prompts.len() < count {
            let attempt: u64 = attempts.next().expect("the range is unbounded");
            if attempt - last > MAX_ATTEMPTS {
                break;
            }
            let mut random = Random::new(hash(&["test", split.name()]), attempt);
            let kind = self.test_kind(split, &mut random);
            let Some(content) = self.sample(kind, &mut random) else { continue };
            let expected: &[Split] = if split.is_held_out() { &[split] } else { &[] };
            if self.splits().of(&content) != expected {
                continue;
            }
            let caption = caption(&content, self.drawings(), Naming::FULL);
            if captions.insert(caption.clone()) {
                last = attempt;
                prompts.push(Prompt { caption, content });
            }
        }
        prompts
    }

    /// Samples one of the simplest kinds of scenes that a split applies to.
    fn test_kind(&self, split: Split, random: &mut Random) -> Kind {
        let relations = match split {
            // "and" doesn't determine the order.
            Split::Order => &Relation::ALL[..4],
            _ => &Relation::ALL,
        };
        match split {
            Split::Seen => self.sample_kind(random),
            Split::Pairs | Split::Order | Split::Solo => Kind::Relation(relations[random.below(relations.len())]),
            Split::Single | Split::Colour | Split::Style => Kind::Single,
            Split::Count => self.sample_count(random),
        }
    }
}
