"""What a request to each handler must look like, derived from the components it reads: strict models that a request meets before gradio does."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError, create_model

from explorer.server.guard import SMALL, Forms

WORD, WORDS, TEXT = 300, 64, 20_000  # characters of a choice or key, how many of them, characters of a text that names no limit
Word = Annotated[StrictStr, Field(max_length=WORD)] | StrictInt | StrictFloat | StrictBool
Session = Annotated[StrictStr, Field(pattern=r"^[a-z0-9]{4,40}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class CancelRequest(_Strict):
    """Asks for the end of an event of one's own session."""

    session_hash: Session
    fn_index: StrictInt
    event_id: Annotated[StrictStr, Field(pattern=r"^[a-f0-9-]{1,64}$")]


class _Which(BaseModel):
    """The one field that says which model the rest must fit."""

    fn_index: StrictInt


def value_of(component: Any) -> Any:
    """The type of what a page may send for a component; None is what it sends for an empty one."""
    if isinstance(component, gr.Dropdown | gr.CheckboxGroup | gr.Radio):
        several = isinstance(component, gr.CheckboxGroup) or getattr(component, "multiselect", False)
        return Annotated[list[Word], Field(max_length=WORDS)] | None if several else Word | None
    if isinstance(component, gr.Number | gr.Slider):
        return StrictInt | StrictFloat | None
    if isinstance(component, gr.Checkbox):
        return StrictBool | None
    if isinstance(component, gr.Textbox | gr.HTML | gr.Markdown | gr.Code | gr.Button):
        return Annotated[StrictStr, Field(max_length=getattr(component, "max_length", None) or TEXT)] | None
    if isinstance(component, gr.State):
        return None
    if isinstance(component, gr.BrowserState):
        return JsonValue  # a person's own notes; the handlers that read them take a broken one for none
    if type(component).__name__ == "Api":  # an argument of a function for scripts, which checks it itself
        return Word
    raise TypeError(f"{type(component).__name__} is no input that this page takes: say in explorer/ui/forms.py what it may send")


def forms(blocks: gr.Blocks) -> Forms:
    """The models of all handlers of an app, each made when it is first asked for, and the size of the largest request that fits one."""
    shapes: dict[int, Any] = {}
    longest = 0
    for index, handler in blocks.fns.items():
        shapes[index] = tuple[tuple(value_of(component) for component in handler.inputs)] if handler.inputs else tuple[()]
        longest = max(longest, sum(getattr(c, "max_length", None) or 0 for c in handler.inputs if isinstance(c, gr.Textbox)))

    @cache
    def model(index: int) -> type[BaseModel]:
        return create_model(
            f"Handler{index}", __base__=_Strict, data=(shapes[index], ...), fn_index=(Literal[index], ...), session_hash=(Session, ...),
            event_data=(Annotated[JsonValue, Field()], None), trigger_id=(StrictInt | None, None), event_id=(None, None),
            batched=(Literal[False] | None, None), simple_format=(Literal[False] | None, None),
        )  # fmt: skip

    def event(body: bytes) -> Any:
        try:
            which = _Which.model_validate_json(body).fn_index
            if which not in shapes:
                raise ValueError(f"There is no handler {which}.")
            return model(which).model_validate_json(body)
        except ValidationError as error:
            raise ValueError(sentence(error)) from error

    def cancel(body: bytes) -> Any:
        try:
            return CancelRequest.model_validate_json(body)
        except ValidationError as error:
            raise ValueError(sentence(error)) from error

    return Forms(event, cancel, SMALL + 4 * longest)  # a character has at most four bytes


def sentence(error: ValidationError) -> str:
    """The first thing that does not fit, by its place; never the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())[:80]
    return f"The request does not fit this page ({place or 'body'}: {first['msg'][:120]}). Reload the page and try again."
