//! The test prompts within a model's capabilities, the contents that they describe, and their renders.

use std::collections::HashSet;
use std::sync::Arc;

use hart_core::{Error, Image};

use super::capabilities::Capabilities;
use super::score::{Arrangement, Expected};
use crate::data::colours::BACKGROUNDS;
use crate::data::content::{Naming, caption};
use crate::data::random::{Random, hash};
use crate::data::{Content, Drawings, Kind, Relation, SceneOptions, Scenes, Split};

/// Share of prompts for one object at a position, if the model understands positions. The default mix has none.
const POSITIONS_SHARE: f64 = 0.1;
/// Number of attempts to get enough prompts of a split within the capabilities, each with three times as many candidates.
const MAX_ATTEMPTS: u32 = 6;

/// A test prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The prompt's text.
    pub caption: String,
    /// The contents that the prompt describes, with indices into the whole data.
    pub expected: Expected,
    /// A scene that the prompt describes, with indices into the known drawings.
    content: Content,
}

/// The test prompts within a model's capabilities.
pub struct Prompts<'a> {
    all: &'a Drawings,
    scenes: Scenes,
    capabilities: Capabilities,
}

impl<'a> Prompts<'a> {
    /// Creates the prompts for a pack of drawings, with scenes of `side` x `side` pixels.
    ///
    /// # Errors
    ///
    /// Returns an error if the pack has captioned images instead of drawings, or the model knows none of the drawings.
    pub fn new(all: &'a Drawings, capabilities: Capabilities, side: usize) -> Result<Self, String> {
        if all.drawings.is_empty() {
            return Err("the pack has captioned images, expected drawings: objects are detected by comparison with drawings".into());
        }
        let known = known_drawings(all, &capabilities)?;
        let mut options = SceneOptions { side, ..SceneOptions::default() };
        let mix = &mut options.mix;
        mix.position = if capabilities.positions { POSITIONS_SHARE } else { 0.0 };
        if !capabilities.relations || known.concepts.len() < 2 {
            mix.relation = 0.0;
        }
        if let Some(counts) = &capabilities.counts {
            let several = counts.iter().copied().filter(|&count| count > 1);
            match several.clone().min().zip(several.max()) {
                Some((min, max)) => options.counts = [min, max],
                None => mix.count = 0.0,
            }
        }
        Ok(Self { all, scenes: Scenes::new(Arc::new(known), options)?, capabilities })
    }

    /// Returns the splits within the capabilities, each with at most `count` prompts.
    pub fn splits(&self, count: usize) -> Vec<(Split, Vec<Prompt>)> {
        let mix = &self.scenes.options().mix;
        let is_testable = |split: &Split| match split {
            Split::Seen | Split::Single => true,
            _ if !self.capabilities.held_out => false,
            Split::Pairs | Split::Order | Split::Solo => mix.relation > 0.0,
            Split::Count => mix.count > 0.0,
            Split::Style => self.naming().style,
            Split::Colour => true,
        };
        let splits = Split::ALL.into_iter().filter(is_testable);
        splits.map(|split| (split, self.of(split, count))).filter(|(_, prompts)| !prompts.is_empty()).collect()
    }

    /// Returns at most `count` prompts of a split. A smaller count gives the first of them.
    fn of(&self, split: Split, count: usize) -> Vec<Prompt> {
        let mut prompts = Vec::new();
        let (mut candidates, mut last_count) = (count, None);
        for _ in 0..MAX_ATTEMPTS {
            let found = self.scenes.test_prompts(split, candidates);
            let exhausted = last_count == Some(found.len());
            last_count = Some(found.len());
            // Captions without the style may be equal.
            let mut captions = HashSet::new();
            let known =
                found.into_iter().filter(|prompt| self.knows_content(&prompt.content)).map(|prompt| self.prompt(prompt.content));
            prompts = known.filter(|prompt| captions.insert(prompt.caption.clone())).take(count).collect();
            if prompts.len() == count || exhausted {
                break;
            }
            candidates *= 3;
        }
        prompts
    }

    /// Returns whether the model knows the background and the number of objects of a scene.
    fn knows_content(&self, content: &Content) -> bool {
        let count = if let Kind::Count(count) = content.kind { count } else { 1 };
        self.capabilities.knows_background(BACKGROUNDS[content.background].0) && self.capabilities.knows_count(count)
    }

    /// Returns the parts that the prompts mention.
    fn naming(&self) -> Naming {
        Naming { style: self.capabilities.styles.as_ref().is_none_or(|styles| !styles.is_empty()), ..Naming::FULL }
    }

    /// Returns the prompt of a scene.
    fn prompt(&self, content: Content) -> Prompt {
        let (naming, drawings) = (self.naming(), self.scenes.drawings());
        let caption = caption(&content, drawings, naming);
        let concept = |object: usize| {
            let name = &drawings.concept(content.objects[object].drawing).name;
            self.all.concepts.iter().position(|concept| concept.name == *name).unwrap_or(usize::MAX)
        };
        let side = self.scenes.options().side as f64;

        let mut expected = Expected {
            objects: vec![concept(0)],
            background: naming.background.then_some(content.background),
            style: self.all.styles.iter().position(|style| naming.style && *style == drawings.styles[content.style]),
            ..Expected::default()
        };
        match content.kind {
            Kind::Relation(relation) => {
                expected.objects.push(concept(1));
                expected.arrangement = Some(arrangement_of(relation));
            }
            Kind::Count(count) => expected.count = Some(count),
            Kind::Position(_) => {
                let (x, y) = content.objects[0].centre;
                expected.position = Some([f64::from(x) / side, f64::from(y) / side]);
            }
            Kind::Single | Kind::Image => {}
        }
        Prompt { caption, expected, content }
    }

    /// Renders an image that the prompt describes. Each variation has other sizes, positions and shades; variation 0 is the scene
    /// of the prompt itself.
    ///
    /// # Errors
    ///
    /// Returns an error if the scene is empty.
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

/// Returns the drawings that the model was trained on. The held-out splits depend on this selection.
fn known_drawings(all: &Drawings, capabilities: &Capabilities) -> Result<Drawings, String> {
    let is_drawn_in = |style: &str| match &capabilities.default_style {
        Some(only) => only == style,
        None => capabilities.styles.as_ref().is_none_or(|styles| styles.is_empty()) || capabilities.knows_style(style),
    };
    let is_known = |&index: &usize| {
        let style = &all.styles[all.drawings[index].style];
        capabilities.knows_concept(&all.concept(index).name) && is_drawn_in(style)
    };
    let selected: Vec<usize> = (0..all.drawings.len()).filter(is_known).collect();
    if selected.is_empty() {
        return Err("the model knows none of these drawings: see its capabilities.json".into());
    }
    let images = selected.iter().flat_map(|&index| all.image(index)).copied().collect();
    Drawings::new(all.side, selected.iter().map(|&index| all.label(index)).collect(), images)
}
