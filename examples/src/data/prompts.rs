//! Prompts to test a model with, and what their pictures should show.

use std::collections::HashSet;

use super::content::{Content, Kind, Naming, Relation, caption};
use super::random::{Random, hash};
use super::scenes::Scenes;
use super::splits::Split;

/// How often a prompt is drawn before there is thought to be no other one.
const DRAWS: u64 = 20_000;

/// A prompt, and what its picture should show.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Names everything: objects, arrangement, background, style.
    pub caption: String,
    /// What it asks for, with a true size and place of the objects; [`Scenes::render`] draws it.
    pub content: Content,
}

impl Scenes {
    /// At most `count` different prompts of a split, always the same ones. No prompt is held out for any other reason than its split's;
    /// those of [`Split::Seen`] are of the kinds that the mix has. There are fewer where a split is small, none in a pack of captioned
    /// pictures, and the first of many are those of few.
    pub fn test_prompts(&self, split: Split, count: usize) -> Vec<Prompt> {
        let mut prompts = Vec::new();
        let mut said = HashSet::new();
        let mut draws = 0..;
        if self.drawings().drawings.is_empty() {
            return prompts;
        }
        let mut last = 0;
        while prompts.len() < count {
            let draw: u64 = draws.next().expect("it doesn't end");
            if draw - last > DRAWS {
                break;
            }
            let mut random = Random::new(hash(&["test", split.name()]), draw);
            let kind = self.test_kind(split, &mut random);
            let Some(content) = self.draw(kind, &mut random) else { continue };
            let wanted: &[Split] = if split.is_held_out() { &[split] } else { &[] };
            if self.splits().of(&content) != wanted {
                continue;
            }
            let caption = caption(&content, self.drawings(), Naming::FULL);
            if said.insert(caption.clone()) {
                last = draw;
                prompts.push(Prompt { caption, content });
            }
        }
        prompts
    }

    /// The simplest kinds that can show what a split is about.
    fn test_kind(&self, split: Split, random: &mut Random) -> Kind {
        let relations = match split {
            // "and" doesn't say which order.
            Split::Order => &Relation::ALL[..4],
            _ => &Relation::ALL,
        };
        match split {
            Split::Seen => self.kind(random),
            Split::Pairs | Split::Order | Split::Solo => Kind::Relation(relations[random.below(relations.len())]),
            Split::Single | Split::Colour | Split::Style => Kind::Single,
            Split::Count => self.count(random),
        }
    }
}
