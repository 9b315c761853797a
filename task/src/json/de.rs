// SPDX-License-Identifier: Apache-2.0
//! Values of Rust's types out of JSON, by Go's rules.

use super::Error;
use super::scan::{Scan, text};
use serde::Deserialize;
use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde::forward_to_deserialize_any;
use std::borrow::Cow;
use std::collections::{BTreeMap, btree_map};
use std::fmt::Display;

/// The deepest value that anybody keeps: what makes it goes as deep down the stack.
const DEEPEST: usize = 128;
const NULL: &[u8] = b"null";

/// All that a document says of one value, first to last: more than once if its key is there twice.
#[derive(Clone)]
pub(super) struct Said<'a> {
    values: Vec<&'a [u8]>,
    depth: usize,
}

impl<'a> Said<'a> {
    /// `value` is valid.
    pub fn once(value: &'a [u8]) -> Self {
        let values = vec![value];
        Self { values, depth: 0 }
    }

    fn last(&self) -> &'a [u8] {
        self.values.last().copied().unwrap_or(NULL)
    }

    fn is_null(&self) -> bool {
        self.last() == NULL
    }

    /// One level below.
    fn inside(&self, value: &'a [u8]) -> Result<Self, Error> {
        if self.depth >= DEEPEST {
            return Err(Error::new(format!("nested deeper than {DEEPEST} levels")));
        }
        Ok(Self {
            values: vec![value],
            depth: self.depth + 1,
        })
    }

    /// The members of the objects that were said last, by what `name` makes of their keys; `None`
    /// is passed over.
    fn members<'n>(
        &self,
        name: impl Fn(Cow<'a, str>) -> Option<Cow<'n, str>>,
    ) -> Result<BTreeMap<Cow<'n, str>, Self>, Error> {
        let objects = self.values.iter().rev();
        let objects = objects.take_while(|value| value.starts_with(b"{")).count();
        let mut members = BTreeMap::<_, Self>::new();
        for object in &self.values[self.values.len() - objects..] {
            for (key, value) in Scan::new(object).parts()? {
                let Some(name) = name(text(key.unwrap_or_default())) else {
                    continue;
                };
                match members.entry(name) {
                    btree_map::Entry::Occupied(mut there) => there.get_mut().values.push(value),
                    btree_map::Entry::Vacant(free) => drop(free.insert(self.inside(value)?)),
                }
            }
        }
        Ok(members)
    }

    fn number<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Error> {
        let digits = std::str::from_utf8(self.last()).unwrap_or_default();
        if let Ok(number) = digits.parse() {
            return visitor.visit_u64(number);
        }
        if let Ok(number) = digits.parse() {
            return visitor.visit_i64(number);
        }
        let number = digits.parse::<f64>().unwrap_or_default();
        // What is beyond it can't be written as JSON again.
        visitor.visit_f64(number.clamp(f64::MIN, f64::MAX))
    }
}

/// Methods that take `null` for a value, and all else for what it is.
macro_rules! or_null {
    ($($method:ident $visit:ident $null:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            if self.is_null() {
                return visitor.$visit($null);
            }
            self.deserialize_any(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Said<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.last() {
            b"null" => visitor.visit_unit(),
            b"true" => visitor.visit_bool(true),
            b"false" => visitor.visit_bool(false),
            string @ [b'"', ..] => visitor.visit_str(&text(string)),
            [b'{', ..] => {
                let mut members = self.members(Some)?;
                members.retain(|_, said| !said.is_null());
                visitor.visit_map(Members::new(members))
            }
            [b'[', ..] => self.deserialize_seq(visitor),
            _ => self.number(visitor),
        }
    }

    or_null! {
        deserialize_bool visit_bool false;
        deserialize_i8 visit_u64 0;
        deserialize_i16 visit_u64 0;
        deserialize_i32 visit_u64 0;
        deserialize_i64 visit_u64 0;
        deserialize_u8 visit_u64 0;
        deserialize_u16 visit_u64 0;
        deserialize_u32 visit_u64 0;
        deserialize_u64 visit_u64 0;
        deserialize_f32 visit_u64 0;
        deserialize_f64 visit_u64 0;
        deserialize_str visit_str "";
        deserialize_string visit_str "";
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let list = match self.last() {
            NULL => Vec::new(),
            list @ [b'[', ..] => Scan::new(list).parts()?,
            _ => return self.deserialize_any(visitor),
        };
        let items = list.into_iter().map(|(_, value)| self.inside(value));
        let items = items.collect::<Result<Vec<_>, _>>()?.into_iter();
        visitor.visit_seq(Items { items, place: 0 })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    /// A map's keys are as they are written, and its values whole: the last.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if !self.is_null() && !self.last().starts_with(b"{") {
            return self.deserialize_any(visitor);
        }
        let mut members = self.members(Some)?;
        for said in members.values_mut() {
            said.values = vec![said.last()];
        }
        visitor.visit_map(Members::new(members))
    }

    /// A field is known by its name in any case; but if there is one of the very name, by that.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.last() {
            // To serde a list of its fields were a struct, too.
            [b'[', ..] => return Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            NULL | [b'{', ..] => {}
            _ => return self.deserialize_any(visitor),
        }
        let members = self.members(|key| {
            let exact = fields.iter().find(|name| **name == key);
            let folded = || fields.iter().find(|name| name.eq_ignore_ascii_case(&key));
            exact.or_else(folded).map(|name| Cow::Borrowed(*name))
        })?;
        visitor.visit_map(Members::new(members))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple_struct enum identifier
    }
}

/// What is left of an object.
struct Members<'n, 'a> {
    members: btree_map::IntoIter<Cow<'n, str>, Said<'a>>,
    next: Option<(Cow<'n, str>, Said<'a>)>,
}

impl<'n, 'a> Members<'n, 'a> {
    fn new(members: BTreeMap<Cow<'n, str>, Said<'a>>) -> Self {
        let members = members.into_iter();
        let next = None;
        Self { members, next }
    }
}

impl<'de> MapAccess<'de> for Members<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next = self.members.next();
        let key = self.next.as_ref().map(|(key, _)| key.as_ref());
        key.map(|key| seed.deserialize(key.into_deserializer()))
            .transpose()
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let Some((key, said)) = self.next.take() else {
            return Err(Error::new("a value without a key"));
        };
        seed.deserialize(said).map_err(|e| e.within(key))
    }
}

/// What is left of a list.
struct Items<'a> {
    items: std::vec::IntoIter<Said<'a>>,
    place: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let place = self.place;
        self.place += 1;
        let item = self.items.next();
        item.map(|item| seed.deserialize(item))
            .transpose()
            .map_err(|e| e.within(place.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

impl de::Error for Error {
    fn custom<T: Display>(text: T) -> Self {
        Self::new(text.to_string())
    }
}

/// For a field that a wrong value of must not stop us: it counts as missing.
///
/// # Errors
/// None.
pub fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(T::deserialize(deserializer).unwrap_or_default())
}
