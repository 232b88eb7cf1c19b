// The row that starts from an example of the set; canvas and words have it.
function startFrom(editor) {
  const { find } = editor;
  find(".from").onsubmit = (event) => {
    event.preventDefault();
    const id = find(".id").value.trim();
    if (id) editor.component.setTriggerValue("begin", { example: id });
  };
  find(".any").onclick = () => editor.component.setTriggerValue("begin", { example: null });
}
