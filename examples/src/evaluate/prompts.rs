//! The data's test prompts that a model can be asked, what they ask for, and true renders of them.

use std::collections::HashSet;
use std::sync::Arc;

use hart_core::{Error, Image};

use super::knows::Knows;
use super::score::{Answer, Arrangement};
use crate::data::colours::BACKGROUNDS;
use crate::data::content::{Naming, caption};
use crate::data::random::{Random, hash};
use crate::data::{Content, Drawings, Kind, Relation, SceneOptions, Scenes, Split};

/// Share of prompts for one object at a place, where a model knows places; the data's own mix has none.
const PLACES: f64 = 0.1;
/// How often more prompts are asked for when too few of a split are ones that a model knows.
const TRIES: u32 = 6;

/// A prompt, and what it asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Its words, all of which the model knows.
    pub caption: String,
    /// What it asks for, in the numbers of the whole data.
    pub answer: Answer,
    content: Content,
}

/// Prompts that a model can be asked.
pub struct Prompts<'a> {
    all: &'a Drawings,
    scenes: Scenes,
    knows: Knows,
}

impl<'a> Prompts<'a> {
    /// Prompts of what is known of some drawings, for pictures of `side` pixels.
    ///
    /// # Errors
    ///
    /// The drawings are captioned pictures, or nothing of them is known.
    pub fn new(all: &'a Drawings, knows: Knows, side: usize) -> Result<Self, String> {
        if all.drawings.is_empty() {
            return Err("there are pictures with captions and no drawings: what a picture shows is looked up among drawings".into());
        }
        let known = known(all, &knows)?;
        let mut options = SceneOptions { side, ..SceneOptions::default() };
        let mix = &mut options.mix;
        mix.position = if knows.places { PLACES } else { 0.0 };
        if !knows.relations || known.concepts.len() < 2 {
            mix.relation = 0.0;
        }
        if let Some(counts) = &knows.counts {
            let several = counts.iter().copied().filter(|&count| count > 1);
            match several.clone().min().zip(several.max()) {
                Some((least, greatest)) => options.counts = [least, greatest],
                None => mix.count = 0.0,
            }
        }
        Ok(Self { all, scenes: Scenes::new(Arc::new(known), options)?, knows })
    }

    /// Every split that the model can be asked, with at most so many prompts.
    pub fn splits(&self, count: usize) -> Vec<(Split, Vec<Prompt>)> {
        let mix = &self.scenes.options().mix;
        let can_be_asked = |split: &Split| match split {
            Split::Seen | Split::Single => true,
            _ if !self.knows.held_out => false,
            Split::Pairs | Split::Order | Split::Solo => mix.relation > 0.0,
            Split::Count => mix.count > 0.0,
            Split::Style => self.naming().style,
            Split::Colour => true,
        };
        let splits = Split::ALL.into_iter().filter(can_be_asked);
        splits.map(|split| (split, self.of(split, count))).filter(|(_, prompts)| !prompts.is_empty()).collect()
    }

    /// At most so many prompts of a split; the first of many are those of few.
    fn of(&self, split: Split, count: usize) -> Vec<Prompt> {
        let mut prompts = Vec::new();
        let (mut asked, mut had) = (count, None);
        for _ in 0..TRIES {
            let drawn = self.scenes.test_prompts(split, asked);
            let exhausted = had == Some(drawn.len());
            had = Some(drawn.len());
            // Without the word for a style two prompts may be one.
            let mut said = HashSet::new();
            let known =
                drawn.into_iter().filter(|prompt| self.knows_all_of(&prompt.content)).map(|prompt| self.prompt(prompt.content));
            prompts = known.filter(|prompt| said.insert(prompt.caption.clone())).take(count).collect();
            if prompts.len() == count || exhausted {
                break;
            }
            asked *= 3;
        }
        prompts
    }

    fn knows_all_of(&self, content: &Content) -> bool {
        let counted = if let Kind::Count(count) = content.kind { count } else { 1 };
        self.knows.background(BACKGROUNDS[content.background].0) && self.knows.count(counted)
    }

    fn naming(&self) -> Naming {
        Naming { style: self.knows.styles.as_ref().is_none_or(|styles| !styles.is_empty()), ..Naming::FULL }
    }

    fn prompt(&self, content: Content) -> Prompt {
        let (naming, drawings) = (self.naming(), self.scenes.drawings());
        let caption = caption(&content, drawings, naming);
        let number = |placed: usize| {
            let name = &drawings.concept(content.objects[placed].drawing).name;
            self.all.concepts.iter().position(|concept| concept.name == *name).unwrap_or(usize::MAX)
        };
        let side = self.scenes.options().side as f64;

        let mut answer = Answer {
            objects: vec![number(0)],
            background: naming.background.then_some(content.background),
            style: self.all.styles.iter().position(|style| naming.style && *style == drawings.styles[content.style]),

            ..Answer::default()
        };
        match content.kind {
            Kind::Relation(relation) => {
                answer.objects.push(number(1));
                answer.arrangement = Some(arrangement_of(relation));
            }
            Kind::Count(count) => answer.count = Some(count),
            Kind::Position(_) => {
                let (x, y) = content.objects[0].centre;
                answer.place = Some([f64::from(x) / side, f64::from(y) / side]);
            }
            Kind::Single | Kind::Image => {}
        }
        Prompt { caption, answer, content }
    }

    /// A true picture of a prompt: with variation 0 the one that its content stands for, with others its objects placed anew.
    ///
    /// # Errors
    ///
    /// None in practice: a render has three bytes a pixel.
    pub fn render(&self, prompt: &Prompt, variation: usize) -> Result<Image, Error> {
        let side = self.scenes.options().side;
        let pixels = match variation {
            0 => self.scenes.render(&prompt.content),
            _ => {
                let mut random = Random::new(hash(&["again", &prompt.caption]), variation as u64);
                self.scenes.render(&self.scenes.vary(&prompt.content, &mut random))
            }
        };
        Image::from_rgb(side, side, pixels)
    }
}

fn arrangement_of(relation: Relation) -> Arrangement {
    match relation {
        Relation::Left => Arrangement::LeftOf,
        Relation::Right => Arrangement::RightOf,
        Relation::Above => Arrangement::Above,
        Relation::Below => Arrangement::Below,
        Relation::And => Arrangement::And,
    }
}

/// The drawings that a model was trained on: what is held out depends on what else there is.
fn known(all: &Drawings, knows: &Knows) -> Result<Drawings, String> {
    let drawn_in = |style: &str| match &knows.drawn_in {
        Some(only) => only == style,
        None => knows.styles.as_ref().is_none_or(|styles| styles.is_empty()) || knows.style(style),
    };
    let is_known = |&index: &usize| {
        let style = &all.styles[all.drawings[index].style];
        knows.concept(&all.concept(index).name) && drawn_in(style)
    };
    let chosen: Vec<usize> = (0..all.drawings.len()).filter(is_known).collect();
    if chosen.is_empty() {
        return Err("the model knows none of these drawings: its knows.json names others".into());
    }
    let images = chosen.iter().flat_map(|&index| all.image(index)).copied().collect();
    Drawings::new(all.side, chosen.iter().map(|&index| all.label(index)).collect(), images)
}
