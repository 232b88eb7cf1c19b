"""A page whose script takes a while after every choice, to see whether tests wait for it."""

import time

import streamlit as st


@st.fragment
def part() -> None:
    ticked = st.checkbox("Tick")
    time.sleep(0.7 * ticked)
    st.write(f"ticked {ticked}")


number = st.slider("Number", 0, 10, 3)
pressed = st.button("Press")
words = st.text_input("Words")
time.sleep(0.7 * (number != 3 or pressed or bool(words)))
st.write(f"number {number}, pressed {pressed}, words {words}")
part()
