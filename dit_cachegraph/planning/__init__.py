"""By which stages a step goes: settings and a trunk come in, a plan comes out, once for each
combination that is met. It reads no value of a tensor."""
